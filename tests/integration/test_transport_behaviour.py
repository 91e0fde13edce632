"""What every transport promises, on servers in this process and on the real ones that Debian packages."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from services.core.retry import Answer, Verdict
from services.delivery.transports import TRANSPORTS
from services.delivery.transports.base import Means
from services.delivery.transports.sftp_upload import SftpUpload
from services.local.certificates import CertificateFiles, ensure_certificates
from services.local.ports import LOOPBACK
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from tests.support.fault_proxy import FaultProxy
from tests.support.file_servers import (
    FileServer,
    Server,
    in_process_ftps,
    in_process_sftp,
)
from tests.support.transports import (
    ALLOWED,
    BODY,
    DEADLINES,
    FILE_SERVERS,
    HOSTED,
    ROWS,
    TLS_SERVERS,
    at_port,
    part,
    send,
    steps,
)

# Which ids an HTTPS receiver knows is the receiver's to say: it answers 409.
files_only = pytest.mark.parametrize("server", FILE_SERVERS, indirect=True)
# SSH knows servers by their keys.
tls_only = pytest.mark.parametrize("server", TLS_SERVERS, indirect=True)


async def test_the_content_is_exact_and_nothing_else_is_there(server: FileServer) -> None:
    answer = await send(server)
    assert answer.verdict is Verdict.DELIVERED, answer
    assert server.files() == {"7-Hourly_1of1.csv": ROWS}


@files_only
async def test_what_was_in_place_before_a_crash_is_recognised(server: FileServer) -> None:
    """The same part again, by another process: one file, and not written a second time."""
    assert (await send(server)).reason == "stored"
    before = (server.folder / "7-Hourly_1of1.csv").stat().st_mtime_ns
    answer = await send(server)
    assert answer[:2] == (Verdict.DELIVERED, "already_there")
    assert list(server.files()) == ["7-Hourly_1of1.csv"]
    assert (server.folder / "7-Hourly_1of1.csv").stat().st_mtime_ns == before


@files_only
@pytest.mark.parametrize("other", [b"theirs", bytes(len(ROWS))], ids=["another-size", "the-same-size"])
async def test_what_somebody_else_left_there_is_not_overwritten(server: FileServer, other: bytes) -> None:
    foreign = server.folder / "7-Hourly_1of1.csv"
    foreign.write_bytes(other)
    foreign.chmod(0o666)
    answer = await send(server)
    assert answer[:2] == (Verdict.STOP, "file_exists")
    assert "7-Hourly_1of1.csv" in answer.detail
    assert server.files() == {"7-Hourly_1of1.csv": other}


@files_only
async def test_a_wrong_password_or_key_stops_and_is_shown_nowhere(server: FileServer) -> None:
    wrong: dict[str, Any] = {"password": "not-the-password"}
    if "private_key" in server.settings:
        wrong = {"private_key": asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()}
    answer = await send(server, **wrong)
    assert answer[:2] == (Verdict.STOP, "login_refused")
    found = await steps(server, **wrong)
    assert [(step.name, step.passed) for step in found][-2:] == [("trust", True), ("log in", False)]
    shown = repr((answer, found))
    assert not any(secret in shown for secret in (*wrong.values(), *(server.settings[name] for name in wrong)))


async def test_a_server_that_proves_to_be_another_gets_nothing(server: FileServer, tmp_path: Path) -> None:
    if server.transport == "sftp":
        other_key = " ".join(asyncssh.generate_private_key("ssh-rsa").export_public_key().decode().split()[:2])
        answer = await send(server, host_keys=[other_key])
        assert answer[:2] == (Verdict.STOP, "host_key_changed")
        assert (await send(server, host_keys=[])).reason == "host_key_unknown"
        [found] = [step for step in await steps(server, host_keys=[]) if not step.passed]
        assert (found.name, [found.host_key]) == ("trust", server.settings["host_keys"])
        rotated = await send(server, host_keys=[other_key, *server.settings["host_keys"]])
        assert rotated.verdict is Verdict.DELIVERED
        return
    stranger = ensure_certificates(tmp_path / "stranger", SystemClock().now()).authority.read_text()
    for ca_pem in (None, stranger):
        answer = await send(server, ca_pem=ca_pem)
        assert answer[:2] == (Verdict.STOP, "certificate_refused"), answer
    assert [step.name for step in await steps(server, ca_pem=stranger) if not step.passed] == ["trust"]
    assert server.files() == {}


@tls_only
async def test_a_certificate_for_another_host_is_refused(server: FileServer) -> None:
    """127.0.0.2 reaches this machine, too; through a proxy, because the servers listen on 127.0.0.1 alone."""
    async with FaultProxy(LOOPBACK, server.port).running(host="127.0.0.2") as proxy:
        changed = at_port(server, proxy.port) | {"host": "127.0.0.2"}
        if "url" in changed:
            changed["url"] = changed["url"].replace("localhost", "127.0.0.2")
        answer = await send(server, **changed)
    assert answer[:2] == (Verdict.STOP, "certificate_refused"), answer


async def test_the_connection_test_goes_all_the_way_and_leaves_nothing(server: FileServer) -> None:
    found = await steps(server)
    assert all(step.passed for step in found), found
    expected = ["resolve", "reach", "trust"]
    if server.transport != "https":
        expected += ["log in", "write", "rename", "remove"]
    assert [step.name for step in found] == expected
    assert server.files() == {}


@files_only
async def test_a_folder_that_is_not_there_stops(server: FileServer) -> None:
    missing = str(Path(str(server.settings.get("directory", ""))) / "nowhere")
    answer = await send(server, directory=missing)
    assert answer.verdict is Verdict.STOP
    assert answer.reason in {"no_such_folder", "no_permission"}  # FTP has one code for both


@pytest.mark.parametrize("server", [name for name in FILE_SERVERS if name != HOSTED], indirect=True)
async def test_files_go_into_the_jobs_folder(server: FileServer) -> None:
    inside = server.folder / "in side"
    inside.mkdir()
    inside.chmod(0o777)
    directory = str(Path(str(server.settings.get("directory", ""))) / "in side")
    assert (await send(server, directory=directory)).verdict is Verdict.DELIVERED
    assert (inside / "7-Hourly_1of1.csv").read_bytes() == ROWS


@files_only
async def test_hidden_leftovers_of_the_job_are_removed_and_nobody_elses(server: FileServer) -> None:
    leftover, others = ".7-Hourly_1of1.csv.0123abcd.partial", ".77-x.csv.0123abcd.partial"
    for name in (leftover, others):
        (server.folder / name).write_bytes(b"half")
        (server.folder / name).chmod(0o666)
    if os.geteuid() == 0:
        os.chown(server.folder / leftover, server.folder.stat().st_uid, -1)
    assert (await send(server)).verdict is Verdict.DELIVERED
    assert set(server.files()) == {"7-Hourly_1of1.csv", others}


@pytest.mark.parametrize("server", ["asyncssh", "openssh", HOSTED], indirect=True)
@pytest.mark.parametrize("other", [b"theirs", ROWS], ids=["another-file", "the-same-file"])
async def test_a_file_that_comes_in_the_moment_of_the_rename_is_not_replaced(
    server: FileServer, other: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the second look, and before the rename: the server itself must not replace it."""
    look = SftpUpload._found
    looks: list[Answer | None] = []
    theirs = server.folder / "7-Hourly_1of1.csv"

    async def look_and_be_overtaken(upload: SftpUpload) -> Answer | None:
        looks.append(await look(upload))
        if len(looks) == 2:
            theirs.write_bytes(other)
        return looks[-1]

    monkeypatch.setattr(SftpUpload, "_found", look_and_be_overtaken)
    answer = await send(server)
    assert looks[:2] == [None, None]
    expected = (Verdict.DELIVERED, "already_there") if other == ROWS else (Verdict.STOP, "file_exists")
    assert answer[:2] == expected, answer
    assert server.files() == {"7-Hourly_1of1.csv": other}


class FullDisk(asyncssh.SFTPServer):
    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        raise asyncssh.SFTPNoSpaceOnFilesystem("no space")


class NoPosixRename(asyncssh.SFTPServer):
    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPOpUnsupported("not offered")


class NoPlainRename(asyncssh.SFTPServer):
    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPFailure("no hard links here")


class NoRename(NoPosixRename):
    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPPermissionDenied("no")


class NoWriting(asyncssh.SFTPServer):
    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        raise asyncssh.SFTPPermissionDenied("no")


class Shortening(asyncssh.SFTPServer):
    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        super().write(file_obj, offset, data[:-1])
        return len(data)


REFUSALS: Mapping[str, tuple[Server, Verdict, str]] = {
    "sftp: the disk is full": (in_process_sftp(files=FullDisk), Verdict.RETRY, "server_failed"),
    "sftp: no writing": (in_process_sftp(files=NoWriting), Verdict.STOP, "no_permission"),
    "sftp: no renaming at all": (in_process_sftp(files=NoRename), Verdict.STOP, "no_permission"),
    "sftp: bytes get lost": (in_process_sftp(files=Shortening), Verdict.RETRY, "size_differs"),
    "ftps: no writing": (in_process_ftps(rights="elrdf"), Verdict.STOP, "no_permission"),
    "ftps: no renaming": (in_process_ftps(rights="elradmw"), Verdict.STOP, "rename_refused"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_a_server_refuses_is_named_and_leaves_nothing(
    case: str, tmp_path: Path, certificates: CertificateFiles
) -> None:
    make, verdict, reason = REFUSALS[case]
    async with make(tmp_path, certificates) as server:
        answer = await send(server, part(BODY))
        assert answer[:2] == (verdict, reason), answer
        assert server.files() == {}
        failed = [step for step in await steps(server) if not step.passed]
        assert len(failed) == 1
        assert failed[0].name in {"write", "rename"}


@pytest.mark.parametrize("files", [NoPosixRename, NoPlainRename])
async def test_where_one_rename_is_refused_the_other_serves(
    files: type[asyncssh.SFTPServer], tmp_path: Path, certificates: CertificateFiles
) -> None:
    async with in_process_sftp(files=files)(tmp_path, certificates) as server:
        assert (await send(server)).reason == "stored"
        assert server.files() == {"7-Hourly_1of1.csv": ROWS}
        assert (await send(server, part(BODY))).reason == "file_exists"
        assert all(step.passed for step in await steps(server))


@pytest.mark.parametrize("transport", ["sftp", "ftps"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"host": ""}, '"host"'),
        ({"host": "sftp://example.org"}, '"host"'),
        ({"port": 0}, '"port"'),
        ({"port": "22"}, '"port"'),
        ({"user": "a\nb"}, '"user"'),
        ({"directory": 5}, '"directory"'),
        ({"directory": "a\r\nDELE b"}, '"directory"'),
        ({"line_end": "cr"}, '"line_end"'),
        ({"defuse_formulas": "yes"}, '"defuse_formulas"'),
        ({"password": ""}, "password"),
        ({"password": 5}, '"password"'),
    ],
)
async def test_settings_of_no_use_are_named(transport: str, changed: dict[str, Any], named: str) -> None:
    made = TRANSPORTS[transport](Means(DEADLINES, SystemClock(), ALLOWED))
    sound = {"host": "example.org", "user": "u", "password": "p"}
    assert made.destination(sound).address in {"example.org:22", "example.org:21"}
    with pytest.raises(UserError, match=named):
        made.destination(sound | changed)
    await made.aclose()
