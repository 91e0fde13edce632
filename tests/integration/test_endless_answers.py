"""Servers whose answers have no end cost an attempt, never the process: what is taken of them is bounded."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from pydantic import SecretStr
from pyftpdlib.filesystems import AbstractedFS

from services.core.retry import Verdict
from services.delivery.mailing import Mailer, SmtpSettings
from services.delivery.notices import Notice
from services.delivery.transports import ftps_limits, sftp_upload
from services.local.certificates import CertificateFiles
from services.local.ports import LOOPBACK
from tests.support.endless_server import FLOOD, endless_server
from tests.support.file_servers import FileServer, ftps_settings, in_process_ftps, in_process_sftp, sftp_settings
from tests.support.transports import ROWS, send, steps

# What lies in buffers of both sides, and more.
TAKEN = FLOOD // 4
NOTICE = Notice(
    event="job.failing",
    at="2026-11-20T10:00:00Z",
    organization="Acme",
    job_id=7,
    job_name="Hourly",
    reason="timeout",
    error="",
    failing_since=None,
    run=None,
    window_start=None,
    window_end=None,
    waiting_runs=0,
    failed_runs=0,
    meaning="It failed.",
    action="Look.",
)
LINES = {
    "a reply of endless lines": (b"220-", b"welcome\r\n220-"),
    "a reply of endless lines of other codes": (b"220-", b"999 welcome\r\n"),
    "a line without an end": (b"220 ", b"x"),
    "nothing but line ends": (b"", b"\r\n"),
}


def _tls(certificates: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    return context


@pytest.mark.parametrize("mode", ["explicit", "implicit"])
@pytest.mark.parametrize("lines", LINES)
async def test_an_ftp_servers_endless_greeting(
    lines: str, mode: str, tmp_path: Path, certificates: CertificateFiles
) -> None:
    begin, again = LINES[lines]
    tls = _tls(certificates) if mode == "implicit" else None
    async with endless_server(again, begin=begin, tls=tls) as flood:
        server = FileServer("ftps", ftps_settings(flood.port, certificates, tls=mode), tmp_path)
        answer = await send(server)
        assert flood.sent_bytes < TAKEN
        assert answer.verdict is Verdict.RETRY
        assert answer.reason == ("answer_too_long" if "endless lines" in lines else "bad_answer"), answer
        failed = [step for step in await steps(server) if not step.passed]
    assert [step.name for step in failed] == ["trust"]
    assert flood.sent_bytes < 2 * TAKEN


class EndlessFolder(AbstractedFS):  # type: ignore[misc]
    """Lists one name for ever, after a leftover of an earlier attempt of the job."""

    listed = 0

    def format_mlsx(
        self, basedir: str, listing: Any, perms: str, facts: Any, ignore_err: bool = True
    ) -> Iterator[bytes]:
        yield b"type=file;size=4; .7-Hourly_1of1.csv.0123abcd.partial\r\n"
        while type(self).listed < FLOOD:
            type(self).listed += 2_000 * 60
            yield b"type=file;size=1;modify=20261120100000; another-file-of-theirs\r\n" * 2_000


async def test_an_ftp_servers_endless_folder(
    tmp_path: Path, certificates: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part arrives all the same, and so does the next one; what came before the limit was looked at."""
    monkeypatch.setattr(EndlessFolder, "listed", 0)
    monkeypatch.setattr(ftps_limits, "LIST_NAMES", 10_000)
    async with in_process_ftps(files=EndlessFolder)(tmp_path, certificates) as server:
        (server.folder / ".7-Hourly_1of1.csv.0123abcd.partial").write_bytes(b"half")
        assert (await send(server)).reason == "stored"
        assert server.files() == {"7-Hourly_1of1.csv": ROWS}
    assert EndlessFolder.listed < TAKEN


class EndlessSftpFolder(asyncssh.SFTPServer):
    """Lists one name for ever."""

    listed = 0

    async def scandir(self, path: bytes) -> Any:
        while type(self).listed < 20 * sftp_upload.LIST_NAMES:
            type(self).listed += 1
            yield asyncssh.SFTPName(b"another-file-of-theirs", attrs=asyncssh.SFTPAttrs())


async def test_an_sftp_servers_endless_folder(
    tmp_path: Path, certificates: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndlessSftpFolder, "listed", 0)
    monkeypatch.setattr(sftp_upload, "LIST_NAMES", 2_000)
    async with in_process_sftp(files=EndlessSftpFolder)(tmp_path, certificates) as server:
        assert (await send(server)).reason == "stored"
        assert server.files() == {"7-Hourly_1of1.csv": ROWS}
    assert EndlessSftpFolder.listed < 3_000


@pytest.mark.parametrize("again", [b"SSH-1.5-old\r\n", b"welcome\r\n", b"x"], ids=["versions", "lines", "a line"])
async def test_an_sftp_servers_endless_greeting(again: bytes, tmp_path: Path) -> None:
    host_key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    async with endless_server(again) as flood:
        answer = await send(FileServer("sftp", sftp_settings(flood.port, host_key), tmp_path))
        assert answer.verdict is Verdict.RETRY, answer
    assert flood.sent_bytes < TAKEN


@pytest.mark.parametrize("security", ["none", "tls"])
@pytest.mark.parametrize("again", [b"220-welcome\r\n", b"x"], ids=["lines", "a line"])
async def test_a_mail_servers_endless_greeting(again: bytes, security: str, certificates: CertificateFiles) -> None:
    tls = _tls(certificates) if security == "tls" else None
    async with endless_server(again, tls=tls) as flood:
        settings = SmtpSettings(
            smtp_host="localhost" if tls else LOOPBACK,
            smtp_port=flood.port,
            smtp_security=security,  # type: ignore[arg-type]
            smtp_username="",
            smtp_password=SecretStr(""),
            smtp_ca_file=certificates.authority,
            smtp_from="Meterpost <meterpost@example.org>",
            smtp_timeout_seconds=5,
        )
        answer = await Mailer(settings).send("a@example.org", "name", NOTICE)
    assert answer.verdict is Verdict.RETRY
    assert flood.sent_bytes < TAKEN
