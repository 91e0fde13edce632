"""`meterpost receiver check` over what delivery left at a receiver, and as a receiver itself."""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.local.certificates import ensure_certificates
from services.platform.clock import SystemClock
from tests.integration.test_requests import until_states
from tests.support.command import REPOSITORY, Meterpost
from tests.support.demo_receiver import DemoReceiver, demo_receiver
from tests.support.exports import Exports, at, delivering
from tests.support.file_servers import in_process_sftp
from tests.support.polling import eventually_async

SECRET, FOREIGN = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"s", b"f"))


@pytest.fixture
def kit(tmp_path: Path) -> Meterpost:
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "foreign").write_text(FOREIGN + "\n")
    return Meterpost(tmp_path, {})


@pytest.fixture
async def received(exports: Exports, tmp_path: Path) -> AsyncIterator[DemoReceiver]:
    """Give a receiver with three runs of one job: 2, 1 and 1 parts and a manifest each."""
    with demo_receiver(tmp_path / "there") as there:
        settings = {"url": there.url, "ca_pem": there.ca_pem, "signing_secrets": [SECRET]}
        await three_runs(exports, settings, "https", meters=2_001)
        yield there


async def three_runs(exports: Exports, settings: dict[str, Any], transport: str, *, meters: int) -> None:
    await exports.seed(meters=meters)
    await exports.close_windows(60, at(8), at(9))
    await exports.close_windows(60, at(9), at(10), meters=[1, 2])
    await exports.close_windows(60, at(10), at(11), meters=[])
    await exports.close_windows(60, at(11), at(12), meters=[2])
    job_id = await exports.add_job(settings, resolution=60, transport=transport)
    await exports.execute("UPDATE export_job_version SET manifest = true")
    async with delivering(exports.url, transport=transport):
        await until_states(exports, job_id, ["delivered", "delivered", "empty", "delivered"])


async def test_what_was_delivered_is_sound_and_the_table_says_how_much(received: DemoReceiver, kit: Meterpost) -> None:
    outcome = kit("receiver", "check", received.folder, "--secret", "signing_secret=file:secret")
    assert outcome.code == 0, outcome.out
    assert re.search(r"2026-11-20T08:00:00Z +2026-11-20T12:00:00Z +3 +4 +2,004 +3", outcome.out)
    assert "7 requests compared with their files, 7 signatures checked." in outcome.out
    assert "4 parts with 2,004 rows checked: all sound." in outcome.out
    without = kit("receiver", "check", received.folder, "--json").json
    assert (without["signatures_checked"], without["signatures_unchecked"]) == (0, 7)
    assert (without["difference_count"], without["note_count"]) == (0, 0)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*/*of*.json"))


def rewritten(number: int, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = parts(folder)[number]
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new, 1))

    return change


def journal_line(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "requests.jsonl"
        lines = file.read_text().splitlines(keepends=True)
        assert old in lines[0]
        file.write_text(lines[0].replace(old, new, 1) + "".join(lines[1:]))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: parts(folder)[1].unlink(), {"part_missing"}),
        (lambda folder: next(folder.glob("*/*T090000Z*manifest.json")).unlink(), {"chain"}),
        (rewritten(0, b"Meter 1", b"Meter 9"), {"hash", "request"}),
        (rewritten(2, b'"METER_ID":1', b'"METER_ID":2'), {"form", "hash"}),
        (rewritten(0, b"}]}", b"}]"), {"form", "hash"}),
        (lambda folder: shutil.copy(parts(folder)[0], folder), {"part_twice"}),
        (lambda folder: shutil.copy(parts(folder)[0], folder / "copy.json"), {"name"}),
        (lambda folder: (folder / "link.json").symlink_to(parts(folder)[0]), {"name"}),
        (lambda folder: (folder / ".x.csv.0a1b2c3d.partial").write_bytes(b""), {"left_over"}),
        (journal_line('"status": 200', '"status": 409'), {"other_bytes"}),
        (journal_line('"webhook-id": "', '"webhook-id": "x'), {"signature"}),
        (journal_line('"meterpost-rows": "2000"', '"meterpost-rows": "1"'), {"request"}),
    ],
)
async def test_what_is_changed_is_found(
    received: DemoReceiver, kit: Meterpost, change: Callable[[Path], object], expected: set[str]
) -> None:
    change(received.folder)
    # So that nothing counts as being on its way.
    for file in received.folder.rglob("*"):
        os.utime(file, (time.monotonic(), 1_700_000_000), follow_symlinks=False)
    outcome = kit("receiver", "check", received.folder, "--secret", "signing_secret=file:secret", "--json")
    assert outcome.code == 6
    assert {finding["what"] for finding in outcome.json["findings"] if finding["is_difference"]} == expected


async def test_another_secret_is_found_and_none_is_shown(received: DemoReceiver, kit: Meterpost) -> None:
    outcome = kit("receiver", "check", received.folder, "--secret", "signing_secret=file:foreign", "--limit", "2")
    assert outcome.code == 6
    assert "another secret, or other bytes" in outcome.out
    assert "2 of 7 findings shown" in outcome.err
    rotating = ("--secret", "signing_secret=file:foreign", "--secret", "signing_secret=file:secret")
    assert kit("receiver", "check", received.folder, *rotating).code == 0
    assert not {SECRET, FOREIGN} & set((outcome.out + outcome.err).split())


async def test_files_over_sftp_are_sound(exports: Exports, kit: Meterpost, tmp_path: Path) -> None:
    certificates = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    (tmp_path / "sftp").mkdir()
    async with in_process_sftp()(tmp_path / "sftp", certificates) as server:
        await three_runs(exports, {**server.settings, "line_end": "crlf"}, "sftp", meters=10_001)
        outcome = await asyncio.to_thread(kit, "receiver", "check", server.folder, "--json")
    assert (outcome.code, outcome.json["findings"]) == (0, [])
    [job] = outcome.json["jobs"]
    assert (job["runs"], job["parts"], job["rows"], job["manifests"]) == (3, 4, 10_004, 3)


def test_usage(kit: Meterpost, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (("nowhere",), "is no folder"),
        (("empty",), "there is nothing in empty to check"),
        ((), "give either a FOLDER or --listen"),
        (("empty", "--listen"), "give either a FOLDER or --listen"),
        (("empty", "--secret", SECRET), "never given as an argument"),
        (("empty", "--secret", f"signing_secret={SECRET}"), "never given as an argument"),
        (("empty", "--secret", "signing_secret=file:nothing"), "cannot be read"),
        (("empty", "--key", "a"), "belong to --listen"),
        (("--listen", "--key", "a"), "come together"),
        (("--listen", "--certificate", "a", "--key", "b"), "cannot be used"),
    ):
        outcome = kit("receiver", "check", *arguments)
        assert (outcome.code, words in outcome.err) == (2, True), outcome
        assert SECRET not in outcome.err


@asynccontextmanager
async def listening(there: DemoReceiver, *more: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run the command; gives its URL."""
    certificates = there.certificates
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "receiver", "check", "--listen", "--port", "0",
        "--certificate", str(certificates.server), "--key", str(certificates.server_key), *more,
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
        found = re.search(r"https://[0-9.:]+/", said)
        assert found, said
        yield found[0], process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_listening_answers_2xx_only_when_sound_and_prints_a_line_for_each(
    exports: Exports, tmp_path: Path
) -> None:
    there = DemoReceiver(tmp_path)  # only its certificates
    (tmp_path / "secret").write_text(SECRET)
    secret = ("--secret", f"signing_secret=file:{tmp_path / 'secret'}")
    async with listening(there, *secret, "--json") as (url, process):
        settings = {"url": url.replace("127.0.0.1", "localhost"), "ca_pem": there.ca_pem}
        await three_runs(exports, settings | {"signing_secrets": [SECRET]}, "https", meters=2_001)
        unsigned = await exports.add_job(settings, resolution=60, name="Unsigned")
        async with delivering(exports.url):

            async def stopped() -> bool:
                return bool((await exports.progress(unsigned)).get("stopped_at"))

            await eventually_async(stopped)
        [(_part, outcome, reason)] = await exports.attempts(unsigned)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 20)
    lines = [json.loads(line) for line in out.decode().splitlines()]
    assert [line["status"] for line in lines] == [200] * 7 + [401]
    assert {line["signature"] for line in lines[:7]} == {"checked"}
    assert sum(line["rows"] for line in lines if "manifest" not in line["file"]) == 2_004
    assert lines[-1]["said"] == "the header webhook-signature is missing"
    assert (outcome, reason) == ("stop", "http_401")
    assert (process.returncode, b"Traceback" in err) == (0, False)
