"""What every transport promises of its connections: where they lead, how long they last, what ends them."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyftpdlib.handlers import TLS_FTPHandler

from services.core.retry import Verdict
from services.delivery.transports import TRANSPORTS
from services.delivery.transports.base import Means
from services.local.certificates import CertificateFiles
from services.local.ports import LOOPBACK
from services.platform.clock import SystemClock
from services.platform.outbound import Outbound
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.file_servers import (
    FileServer,
    ftps_settings,
    in_process_ftps,
    in_process_https,
    in_process_sftp,
    sftp_settings,
)
from tests.support.transports import (
    DEADLINES,
    FILE_SERVERS,
    QUICK,
    ROWS,
    TLS_SERVERS,
    at_port,
    part,
    send,
    steps,
    transport_of,
)

# Which ids an HTTPS receiver knows is the receiver's to say: it answers 409.
files_only = pytest.mark.parametrize("server", FILE_SERVERS, indirect=True)
# SSH knows servers by their keys.
tls_only = pytest.mark.parametrize("server", TLS_SERVERS, indirect=True)


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
