"""What every transport promises, on servers in this process and on the real ones that Debian packages."""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from pyftpdlib.handlers import TLS_FTPHandler

from services.core.retry import Answer, Verdict
from services.core.schedule import Slot
from services.delivery.transports import TRANSPORTS
from services.delivery.transports.base import Deadlines, Means, OutgoingPart, Step, Transport
from services.local.certificates import CertificateFiles, ensure_certificates
from services.local.ports import LOOPBACK
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.outbound import Outbound, parse_networks
from tests.support.dropbox import hosted_folder
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.file_servers import (
    FileServer,
    Server,
    ftps_settings,
    in_process_ftps,
    in_process_https,
    in_process_sftp,
    openssh,
    proftpd,
    sftp_settings,
    vsftpd,
)

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
BODY = b"".join(b"%d,Electricity,Hall feeder,kWh,10.00\r\n" % number for number in range(10_000))
ROWS = b'{"measurements":[' + b",".join([b'{"METER_ID":1}'] * 2_000) + b"]}"
DEADLINES = Deadlines(connect=timedelta(seconds=5), total=timedelta(seconds=10))
ALLOWED = Outbound(parse_networks("127.0.0.0/8, ::1"))

SERVERS: dict[str, Server] = {
    "https": in_process_https,
    "asyncssh": in_process_sftp(),
    "asyncssh-key": in_process_sftp(by_key=True),
    "openssh": openssh,
    "pyftpdlib": in_process_ftps(),
    "pyftpdlib-implicit": in_process_ftps(implicit=True),
    "vsftpd": vsftpd,
    "proftpd": proftpd,
}
HOSTED = "hosted"
"""The folder that we host, which stands on a database, and whose folders hold files alone."""
FILE_SERVERS = [*(name for name in SERVERS if name != "https"), HOSTED]
TLS_SERVERS = ["https", "pyftpdlib", "pyftpdlib-implicit", "vsftpd", "proftpd"]


def part(
    body: bytes | None = None, *, name: str = "7-Hourly_1of1.csv", job_id: int = 7, rows: int = 2_000
) -> OutgoingPart:
    content = ROWS if body is None else body
    return OutgoingPart(
        part_id=f"a1b2c3d4-{name}",
        job_id=job_id,
        run_id="job7-20261120T100000Z",
        part=1,
        parts=1,
        slot=Slot(START, START + timedelta(hours=1)),
        resolution_minutes=15,
        row_count=2_000,
        sha256=hashlib.sha256(content).digest(),
        file_name=name,
        body=content,
    )


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return ensure_certificates(tmp_path_factory.mktemp("certificates"), SystemClock().now())


@pytest.fixture
def hosted_database(request: pytest.FixtureRequest) -> str:
    """Give a database where the test's server needs one; made before there is an event loop."""
    if request.node.callspec.params.get("server") != HOSTED:
        return ""
    return str(request.getfixturevalue("database_url"))


@pytest.fixture(params=[*SERVERS, HOSTED])
async def server(
    request: pytest.FixtureRequest, hosted_database: str, tmp_path: Path, certificates: CertificateFiles
) -> AsyncIterator[FileServer]:
    if request.param == HOSTED:
        async with hosted_folder(hosted_database, tmp_path / HOSTED) as hosted:
            yield hosted.file_server()
        return
    async with SERVERS[request.param](tmp_path, certificates) as running:
        yield running


# Which ids an HTTPS receiver knows is the receiver's to say: it answers 409.
files_only = pytest.mark.parametrize("server", FILE_SERVERS, indirect=True)
# SSH knows servers by their keys.
tls_only = pytest.mark.parametrize("server", TLS_SERVERS, indirect=True)


@asynccontextmanager
async def transport_of(server: FileServer, deadlines: Deadlines = DEADLINES) -> AsyncIterator[Transport]:
    transport = TRANSPORTS[server.transport](Means(deadlines, SystemClock(), ALLOWED))
    try:
        yield transport
    finally:
        await transport.aclose()


async def send(
    server: FileServer, of: OutgoingPart | None = None, deadlines: Deadlines = DEADLINES, **changed: Any
) -> Answer:
    """Send by a process that has just been started."""
    async with transport_of(server, deadlines) as transport:
        return await transport.destination({**server.settings, **changed}).send(of or part())


async def steps(server: FileServer, **changed: Any) -> list[Step]:
    async with transport_of(server) as transport:
        return [step async for step in transport.destination({**server.settings, **changed}).check()]


def at_port(server: FileServer, port: int) -> dict[str, Any]:
    """Return what a job must say differently to go through another port."""
    if server.transport == "https":
        return {"url": str(server.settings["url"]).replace(f":{server.port}/", f":{port}/")}
    return {"port": port}


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


async def test_a_server_that_is_away_is_tried_again(server: FileServer) -> None:
    async with FaultProxy(LOOPBACK, 9).running() as proxy:
        gone = at_port(server, proxy.port)
    answer = await send(server, **gone)
    assert answer[:2] == (Verdict.RETRY, "connection_refused")
    assert [(step.name, step.passed) for step in await steps(server, **gone)] == [("resolve", True), ("reach", False)]


async def test_a_host_without_an_address_is_tried_again(server: FileServer) -> None:
    changed: dict[str, Any] = {"host": "meterpost-test.invalid"}
    if server.transport == "https":
        changed = {"url": "https://meterpost-test.invalid/"}
    assert (await send(server, **changed))[:2] == (Verdict.RETRY, "name_not_resolved")
    assert [(step.name, step.passed) for step in await steps(server, **changed)] == [("resolve", False)]


async def test_an_address_that_is_not_allowed_is_never_connected_to(server: FileServer) -> None:
    transport = TRANSPORTS[server.transport](Means(DEADLINES, SystemClock(), Outbound()))
    destination = transport.destination(server.settings)
    assert (await destination.send(part()))[:2] == (Verdict.STOP, "address_forbidden")
    assert [(step.name, step.passed) async for step in destination.check()] == [("resolve", False)]
    await transport.aclose()


async def test_an_address_that_an_ftps_server_names_is_not_connected_to(
    certificates: CertificateFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data goes to where the control connection leads, which was judged."""
    monkeypatch.setattr(TLS_FTPHandler, "masquerade_address", "192.0.2.1")
    async with in_process_ftps()(tmp_path, certificates) as server:
        assert (await send(server)).reason == "stored"
        assert server.files() == {"7-Hourly_1of1.csv": ROWS}


async def test_a_name_that_leads_elsewhere_the_next_time_is_judged_by_the_address_that_is_used(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look-up for each connection, whose addresses are judged; certificates hold for the name nevertheless."""
    name, looks = "rebinding.example", []
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *arguments: Any, **more: Any) -> list[Any]:
        if host != name:
            return real(host, port, *arguments, **more)
        looks.append(host)
        addresses = ("10.0.0.1", LOOPBACK) if len(looks) == 1 else ("10.0.0.1", "169.254.169.254")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    changed: dict[str, Any] = {"host": name}
    if server.transport == "https":
        changed = {"url": str(server.settings["url"]).replace("localhost", name)}
    answer = await send(server, **changed)
    assert answer.reason == ("stored" if server.transport == "sftp" else "certificate_refused")
    assert looks == [name]
    before = server.files()
    answer = await send(server, part(name="7-Hourly_2of2.csv"), **changed)
    assert answer[:2] == (Verdict.STOP, "address_forbidden")
    assert (looks, server.files()) == ([name] * 2, before)


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


async def test_many_parts_at_once(server: FileServer) -> None:
    parts = [part(name=f"{number}-Hourly_1of1.csv", job_id=number) for number in range(1, 13)]
    async with transport_of(server) as transport:
        destination = transport.destination(server.settings)
        for chunk in range(0, len(parts), 4):
            answers = await asyncio.gather(*map(destination.send, parts[chunk : chunk + 4]))
            assert {answer.verdict for answer in answers} == {Verdict.DELIVERED}, answers
    found = server.files()
    if server.transport == "https":  # our receiver keeps files by job
        found = {file.name: file.read_bytes() for file in server.folder.parent.rglob("*.csv")}
    assert found == {one.file_name: ROWS for one in parts}


@pytest.mark.parametrize("by_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("cut_at", [10, 1_000, 2_000, 4_000])
async def test_cut_at_any_byte_of_the_first_connection(server: FileServer, cut_at: int, *, by_reset: bool) -> None:
    """Nothing that is cut appears under the final name, and the next attempt delivers."""
    async with FaultProxy(LOOPBACK, server.port).running() as proxy:
        proxy.faults = Faults(cut_at_byte=cut_at, by_reset=by_reset)
        answer = await send(server, **at_port(server, proxy.port))
        assert answer.verdict is not Verdict.STOP, answer
        if answer.verdict is Verdict.RETRY:
            assert "7-Hourly_1of1.csv" not in server.files()
        proxy.faults = Faults()
        assert (await send(server, **at_port(server, proxy.port))).verdict is Verdict.DELIVERED
    assert server.files() == {"7-Hourly_1of1.csv": ROWS}


async def test_latency_harms_nothing(server: FileServer) -> None:
    async with FaultProxy(LOOPBACK, server.port).running() as proxy:
        proxy.faults = Faults(latency_s=0.02)
        assert (await send(server, **at_port(server, proxy.port))).verdict is Verdict.DELIVERED
    assert server.files() == {"7-Hourly_1of1.csv": ROWS}


QUICK = Deadlines(connect=timedelta(seconds=1), total=timedelta(seconds=1.5))


async def test_a_server_that_sends_a_byte_now_and_then_is_cut_off(server: FileServer) -> None:
    begun = time.monotonic()
    async with FaultProxy(LOOPBACK, server.port).running() as proxy:
        proxy.faults = Faults(bytes_per_s=20)
        answer = await send(server, deadlines=QUICK, **at_port(server, proxy.port))
    assert answer.verdict is Verdict.RETRY
    assert answer.reason in {"timeout", "connect_timeout"}
    assert time.monotonic() - begun < 5


async def test_a_server_that_falls_silent_in_the_middle_is_cut_off(server: FileServer) -> None:
    """On a session that is logged in, where there is one to keep."""
    begun = time.monotonic()
    async with FaultProxy(LOOPBACK, server.port).running() as proxy, transport_of(server, QUICK) as transport:
        destination = transport.destination({**server.settings, **at_port(server, proxy.port)})
        first = await destination.send(part())
        assert first.verdict is Verdict.DELIVERED
        proxy.stall()
        answer = await destination.send(part(name="7-Hourly_2of2.csv"))
    assert answer.verdict is Verdict.RETRY
    assert answer.reason in {"timeout", "connect_timeout"}
    assert time.monotonic() - begun < 6
    assert server.files() == {"7-Hourly_1of1.csv": ROWS}


@files_only
async def test_a_kept_connection_that_died_costs_no_attempt(server: FileServer) -> None:
    async with FaultProxy(LOOPBACK, server.port).running() as proxy, transport_of(server) as transport:
        destination = transport.destination({**server.settings, **at_port(server, proxy.port)})
        assert (await destination.send(part())).verdict is Verdict.DELIVERED
        await proxy.end_connections()
        assert (await destination.send(part(name="7-Hourly_2of2.csv"))).verdict is Verdict.DELIVERED
    assert len(server.files()) == 2


async def test_parts_follow_one_another_over_one_connection(server: FileServer) -> None:
    names = [f"7-Hourly_{number}of4.csv" for number in (1, 2, 3, 4)]
    async with FaultProxy(LOOPBACK, server.port).running() as proxy, transport_of(server) as transport:
        for name in [*names, *names[:1]]:
            # As the worker does: settings are opened for each attempt.
            destination = transport.destination({**server.settings, **at_port(server, proxy.port)})
            assert (await destination.send(part(name=name))).verdict is Verdict.DELIVERED
        assert proxy.accepted == 1
    assert len(server.files()) == 4


class FullDisk(asyncssh.SFTPServer):
    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        raise asyncssh.SFTPNoSpaceOnFilesystem("no space")


class NoPosixRename(asyncssh.SFTPServer):
    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPOpUnsupported("not offered")


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


async def test_where_posix_rename_is_refused_the_plain_one_serves(
    tmp_path: Path, certificates: CertificateFiles
) -> None:
    async with in_process_sftp(files=NoPosixRename)(tmp_path, certificates) as server:
        assert (await send(server)).reason == "stored"
        assert server.files() == {"7-Hourly_1of1.csv": ROWS}
        assert (await send(server, part(BODY))).reason == "file_exists"
        assert all(step.passed for step in await steps(server))


async def test_a_port_that_speaks_something_else(certificates: CertificateFiles, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(in_process_https(tmp_path, certificates))
        ssh = await stack.enter_async_context(in_process_sftp()(tmp_path / "ssh", certificates))
        ftp = replace(ssh, transport="ftps", settings=ftps_settings(ssh.port, certificates))
        assert (await send(ftp, deadlines=QUICK)).verdict is Verdict.RETRY
        wrong = replace(web, transport="sftp", settings=sftp_settings(web.port, ssh.settings["host_keys"][0]))
        assert (await send(wrong, deadlines=QUICK)).verdict is Verdict.RETRY
        [*_, failed] = await steps(wrong)
        assert (failed.name, failed.passed) == ("trust", False)


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
