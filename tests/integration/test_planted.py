"""The search for planted secrets finds them: in files, tables and what is said, in whatever form."""

import base64
from pathlib import Path

import asyncssh
import pytest

from tests.support.exports import Exports
from tests.support.planted import (
    MARKER,
    leaks_in,
    leaks_in_database,
    plant,
    planted,
    refuse_leaks_in_database,
    refuse_leaks_in_files,
    written_by_the_test,
)
from tests.support.platform import REPOSITORY

SECRET = planted("of this test")


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
@pytest.mark.parametrize("behind", ["", "z", "zz"])
def test_a_marked_secret_is_found_in_every_form(before: str, behind: str) -> None:
    raw = f"{before}{MARKER}{behind}".encode()
    for text in (raw, base64.b64encode(raw), raw.hex().encode(), f"'{SECRET}'".encode()):
        assert leaks_in(b"said " + text + b", and more") != [], text


def test_a_key_is_found_line_by_line_and_nothing_else_is() -> None:
    key, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    pem = plant(key.export_private_key().decode())
    for line in pem.splitlines()[1:-2]:
        assert leaks_in(f"x {line}\\n".encode()) != []
    assert leaks_in(pem.replace("\n", "\\n").encode()) != []
    assert leaks_in(key.export_public_key()) == []
    assert leaks_in(b"".join(other.export_private_key().splitlines()[2:])) == []
    token = plant("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9mLXRoaXMtdGVzdA")
    assert leaks_in(f"Authorization: Bearer {token}".encode()) != []
    assert leaks_in(token.rpartition(".")[0].encode()) == []


def test_files_that_were_produced_are_searched_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "deep").mkdir()
    log = tmp_path / "deep" / "delivery.log"
    log.write_text("sound\n" * 3_000_000)
    refuse_leaks_in_files(tmp_path)
    for place in (0, 9_999_990, 18_000_000):
        with log.open("r+") as stream:
            stream.seek(place)
            stream.write(SECRET)
        with pytest.raises(AssertionError, match=r"delivery\.log"):
            refuse_leaks_in_files(tmp_path)
        log.write_text("sound\n" * 3_000_000)
    log.unlink()  # it would be found when all tests are through


async def test_tables_are_searched(exports: Exports) -> None:
    await exports.seed(meters=1)
    assert await leaks_in_database(exports.url) == []
    for text in (SECRET, base64.b64encode(SECRET.encode()).decode()):
        await exports.execute("UPDATE site_description SET name = $1", text)
        found = await leaks_in_database(exports.url)
        assert len(found) == 2
        assert all("site_description" in one and text[:10] in one for one in found)
        with pytest.raises(AssertionError, match="site_description"):
            refuse_leaks_in_database(exports.url)
    await exports.execute("UPDATE site_description SET name = 'sound'")
    body = f"<{SECRET}>".encode()
    await exports.execute(
        "INSERT INTO export_manifest (organization_id, job_id, slot_start, number, body, sha256) "
        "VALUES (1, 1, now(), 1, $1, $1)",
        body,
    )
    assert [found for found in await leaks_in_database(exports.url) if "export_manifest" in found] != []
    written_by_the_test(exports.url, "export_manifest")
    assert await leaks_in_database(exports.url) == []


def test_tests_that_say_or_write_a_secret_fail(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    pytester.makeconftest("from tests.conftest import no_secret_in_files, pytest_runtest_makereport")
    pytester.makepyfile(
        "from tests.support.planted import planted\n"
        "def test_sound():\n    print('sound')\n"
        "def test_telling():\n    print(planted('x'))\n"
        "def test_writing(tmp_path):\n    (tmp_path / 'deep.log').write_text(planted('x'))\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*test_telling said a secret*"])
    result.stdout.fnmatch_lines(["*secrets were written to files*", "*deep.log*"])
    # Lest this test fails, too.
    capfd.readouterr()
    for log in pytester.path.parent.rglob("deep.log"):
        log.unlink()
