"""Every transport and a server for it: what tests of what they promise share."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from services.core.retry import Answer
from services.core.schedule import Slot
from services.delivery.transports import TRANSPORTS
from services.delivery.transports.base import Deadlines, Means, OutgoingPart, Step, Transport
from services.platform.clock import SystemClock
from services.platform.outbound import Outbound, parse_networks
from tests.support.file_servers import (
    FileServer,
    Server,
    in_process_ftps,
    in_process_https,
    in_process_sftp,
    openssh,
    proftpd,
    vsftpd,
)

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
BODY = b"".join(b"%d,Electricity,Hall feeder,kWh,10.00\r\n" % number for number in range(10_000))
ROWS = b'{"measurements":[' + b",".join([b'{"METER_ID":1}'] * 2_000) + b"]}"
DEADLINES = Deadlines(connect=timedelta(seconds=5), total=timedelta(seconds=10))
QUICK = Deadlines(connect=timedelta(seconds=1), total=timedelta(seconds=1.5))
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
