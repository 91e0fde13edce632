"""`meterpost jobs` for SFTP and FTPS servers: create, try the connection, approve keys, show no secret."""

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from services.core.file_transfer import fingerprint
from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock
from services.platform.secrets import new_key
from tests.support.command import Meterpost
from tests.support.file_servers import PASSWORD, USER, in_process_ftps, in_process_sftp

METERS = (
    "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input\nTap,Water,m3,0.01,Plant,LG-1,logger,1\n"
)
CREATE = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--all-sites")


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    environment = {
        "METERPOST_DATABASE_URL": database_url,
        "METERPOST_ALLOWED_DESTINATIONS": "127.0.0.0/8, ::1",
        "METERPOST_SECRET_KEYS": new_key("test"),
    }
    command = Meterpost(tmp_path, environment)
    (tmp_path / "meters.csv").write_text(METERS)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    command.ok("meters", "import", "meters.csv")
    return command


@pytest.fixture
def certificates(tmp_path: Path) -> CertificateFiles:
    return ensure_certificates(tmp_path / "certificates", SystemClock().now())


async def run(meterpost: Meterpost, *arguments: str, code: int = 0) -> str:
    """Run the command while the servers of this process go on."""
    outcome = await asyncio.to_thread(meterpost, *arguments)
    assert outcome.code == code, (outcome.out, outcome.err)
    assert PASSWORD not in outcome.out + outcome.err
    return outcome.out + ("" if "--json" in arguments else outcome.err)


async def test_a_host_key_is_shown_compared_and_approved(
    meterpost: Meterpost, tmp_path: Path, certificates: CertificateFiles
) -> None:
    async with in_process_sftp()(tmp_path, certificates) as server:
        [key] = server.settings["host_keys"]
        told = await run(
            meterpost, *CREATE, "--sftp", f"{USER}@localhost:{server.port}", "--secret", "password=file:password"
        )
        assert "Nothing is sent before the server's key is approved" in told
        assert "FAILED  trust" in await run(meterpost, "jobs", "test", "1", code=1)
        shown = await run(meterpost, "jobs", "host-key", "1")
        assert f"--approve {fingerprint(key)}" in shown
        wrong = await run(meterpost, "jobs", "host-key", "1", "--approve", "SHA256:other", code=2)
        assert fingerprint(key) in wrong
        await run(meterpost, "jobs", "host-key", "1", "--approve", fingerprint(key))
        steps = json.loads(await run(meterpost, "jobs", "test", "1", "--json"))
        assert steps["passed"]
        assert [step["step"] for step in steps["steps"]] == [
            "resolve", "reach", "trust", "log in", "write", "rename", "remove",
        ]  # fmt: skip
        assert server.files() == {}
        assert fingerprint(key) in await run(meterpost, "jobs", "show", "1")
        await run(meterpost, "jobs", "host-key", "1", "--remove", fingerprint(key))
        assert "FAILED  trust" in await run(meterpost, "jobs", "test", "1", code=1)


async def test_a_key_is_made_and_only_its_public_half_is_shown(meterpost: Meterpost) -> None:
    created = await run(meterpost, *CREATE, "--sftp", "u@example.org", "--directory", "/in")
    assert "ssh-ed25519 AAAA" in created
    for arguments in (("jobs", "show", "1"), ("jobs", "show", "1", "--json"), ("jobs", "list", "--json")):
        shown = await run(meterpost, *arguments)
        assert "PRIVATE KEY" not in shown
    listed = json.loads(await run(meterpost, "jobs", "list", "--json"))["jobs"][0]
    assert listed["transport"] == "sftp"
    assert listed["transport_settings"]["directory"] == "/in"
    assert "sftp://u@example.org/in" in await run(meterpost, "jobs", "list")


async def test_an_ftps_job_is_tried_and_edited(
    meterpost: Meterpost, tmp_path: Path, certificates: CertificateFiles
) -> None:
    async with in_process_ftps(implicit=True)(tmp_path, certificates) as server:
        address = ("--ftps", f"{USER}@localhost:{server.port}", "--secret", "password=file:password", "--implicit")
        await run(meterpost, *CREATE, *address, "--ca-file", str(certificates.authority), "--line-end", "crlf")
        assert "ok      remove" in await run(meterpost, "jobs", "test", "1")
        await run(meterpost, "jobs", "edit", "1", "--directory", "nowhere", "--keep-formulas")
        assert "FAILED  write" in await run(meterpost, "jobs", "test", "1", code=1)
        settings: dict[str, Any] = json.loads(await run(meterpost, "jobs", "show", "1", "--json"))["transport_settings"]
        assert (settings["tls"], settings["line_end"], settings["defuse_formulas"]) == ("implicit", "crlf", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sftp", "example.org"), "USER@HOST"),
        (("--sftp", "u:secret@example.org"), "must not hold the password"),
        (("--sftp", "u@example.org/in"), "USER@HOST"),
        (("--sftp", "u@example.org", "--ftps", "u@example.org"), "one of"),
        (("--sftp", "u@example.org", "--url", "https://example.org/"), "one of"),
        (("--sftp", "u@example.org", "--ca-file", "password"), "for FTPS"),
        (("--ftps", "u@example.org"), "--secret password="),
        (("--ftps", "u@example.org", "--secret", "password=file:missing"), "cannot be read"),
        (("--sftp", "u@example.org", "--line-end", "cr"), "lf, crlf"),
        (("--sftp", "u@example.org", "--host-key-file", "password"), "host key"),
        (("--url", "https://example.org/", "--directory", "in"), "--sftp or --ftps"),
        (("--transport", "ftps", "--sftp", "u@example.org"), "does not fit"),
    ],
)
async def test_what_cannot_be_is_said(meterpost: Meterpost, options: tuple[str, ...], words: str) -> None:
    told = await run(meterpost, *CREATE, *options, code=2)
    assert words in " ".join(told.split())
    assert "secret@" not in told


async def test_private_networks_are_refused_unless_allowed(
    meterpost: Meterpost, tmp_path: Path, certificates: CertificateFiles
) -> None:
    async with in_process_sftp()(tmp_path, certificates) as server:
        await run(meterpost, *CREATE, "--sftp", f"{USER}@localhost:{server.port}", "--secret", "password=file:password")
        strict = Meterpost(meterpost.folder, {**meterpost.environment, "METERPOST_ALLOWED_DESTINATIONS": ""})
        told = await run(strict, "jobs", "test", "1", code=1)
    assert "FAILED  resolve" in told
    assert "METERPOST_ALLOWED_DESTINATIONS" in told


async def test_how_a_job_logs_in_is_changed_and_the_old_way_forgotten(meterpost: Meterpost) -> None:
    await run(meterpost, *CREATE, "--sftp", "u@example.org")
    await run(meterpost, "jobs", "edit", "1", "--secret", "password=file:password")
    settings = json.loads(await run(meterpost, "jobs", "show", "1", "--json"))["transport_settings"]
    assert settings["secrets"] == {"password": "set"}
    assert "public_key" not in settings
    same = json.loads(await run(meterpost, "jobs", "edit", "1", "--secret", "password=file:password", "--json"))
    assert same["changed"] is False
    own = asyncssh.generate_private_key("ssh-ed25519")
    (meterpost.folder / "own-key").write_bytes(own.export_private_key())
    await run(meterpost, "jobs", "edit", "1", "--secret", "private_key=file:own-key")
    settings = json.loads(await run(meterpost, "jobs", "show", "1", "--json"))["transport_settings"]
    assert settings["secrets"] == {"private_key": "set"}
    assert settings["public_key"].split()[1] == own.export_public_key().decode().split()[1]
    (meterpost.folder / "own-key").write_text("no key")
    told = await run(meterpost, "jobs", "edit", "1", "--secret", "private_key=file:own-key", code=2)
    assert "ssh-keygen" in told
    await run(meterpost, "jobs", "edit", "1", "--url", "https://example.org/in")
    settings = json.loads(await run(meterpost, "jobs", "show", "1", "--json"))["transport_settings"]
    assert settings == {"url": "https://example.org/in"}
    told = await run(meterpost, "jobs", "edit", "1", "--secret", "private_key=file:own-key", code=2)
    assert "no use over HTTPS" in told
