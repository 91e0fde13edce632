"""The demo's HTTPS receiver: a customer's server on loopback that checks each part and keeps it as a file.

`python -m services.local.https_receiver --folder DIR --port N --certificate PEM --key PEM`
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from aiohttp import web

from services.core.received_requests import kept_headers
from services.core.times import iso_seconds
from services.local.ports import LOOPBACK
from services.platform.clock import Clock, SystemClock

# A part has at most 1 MB; a little more, so that a mistake of the sender's is named rather than cut off.
MAX_BODY_BYTES = 2 * 1024 * 1024
REQUESTS_FILE = "requests.jsonl"

_JOB = re.compile(r"[0-9]{1,12}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")


class Body(msgspec.Struct):
    """The envelope of a part: measurements, or a catalog's lists."""

    measurements: list[msgspec.Raw] = msgspec.field(default_factory=list)
    sites: list[msgspec.Raw] = msgspec.field(default_factory=list)
    devices: list[msgspec.Raw] = msgspec.field(default_factory=list)
    inputs: list[msgspec.Raw] = msgspec.field(default_factory=list)
    meters: list[msgspec.Raw] = msgspec.field(default_factory=list)


class Delivery(NamedTuple):
    """One request that says of itself what it must."""

    part_id: str
    job_id: str
    file_name: str
    row_count: int
    sha256: str
    body: bytes


class Verdict(NamedTuple):
    """The answer to one request, in a sentence."""

    status: int
    sentence: str


class Receiver:
    """Takes parts on any path. A part's id is stored once; the same id with other bytes is refused."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = asyncio.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._known = _stored_before(folder / REQUESTS_FILE)
        _end_the_last_line(folder / REQUESTS_FILE)

    def application(self) -> web.Application:
        """Return the web application; `GET /healthz` answers whether it serves."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_post("/{path:.*}", self._post)
        return app

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="serving\n")

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            delivery = read_delivery(request.headers, body)
        except ValueError as error:
            verdict = Verdict(400, str(error))
        else:
            # One at a time: two deliveries of one part must not both be the first.
            async with self._lock:
                verdict = await asyncio.to_thread(self._take, delivery)
        await asyncio.to_thread(self._note, request.headers, body, verdict)
        return web.Response(status=verdict.status, text=verdict.sentence + "\n")

    def _take(self, delivery: Delivery) -> Verdict:
        file = self._folder / delivery.job_id / delivery.file_name
        known = self._known.get(delivery.part_id)
        if known is None and file.exists():
            # Stored just before an end that left no note.
            known = hashlib.sha256(file.read_bytes()).hexdigest()
        if known is not None:
            self._known[delivery.part_id] = known
            if known == delivery.sha256:
                return Verdict(200, "known already")
            return Verdict(409, f"{delivery.part_id} came before with other bytes")
        _write_durably(file, delivery.body)
        self._known[delivery.part_id] = delivery.sha256
        return Verdict(200, "stored")

    def _note(self, headers: Mapping[str, str], body: bytes, verdict: Verdict) -> None:
        line = {
            "time": iso_seconds(self._clock.now()),
            "id": headers.get("webhook-id"),
            "status": verdict.status,
            "rows": headers.get("Meterpost-Rows"),
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "said": verdict.sentence,
            # What proves where it is from; nothing that logs in.
            "headers": kept_headers(headers),
        }
        with (self._folder / REQUESTS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read_delivery(headers: Mapping[str, str], body: bytes) -> Delivery:
    """Return the request as a delivery. Raises ValueError, with a sentence, where it is not what it says it is."""
    part_id, job_id = _header(headers, "webhook-id"), _header(headers, "Meterpost-Job")
    file_name, rows = _header(headers, "Meterpost-Filename"), _header(headers, "Meterpost-Rows")
    if not _JOB.fullmatch(job_id) or not _FILE_NAME.fullmatch(file_name):
        raise ValueError("Meterpost-Job or Meterpost-Filename is not one that a file can be named after")
    sha256 = hashlib.sha256(body).hexdigest()
    if sha256 != _header(headers, "Meterpost-Content-SHA256").lower():
        raise ValueError("the body does not have the hash that Meterpost-Content-SHA256 says")
    if headers.get("Meterpost-Part") == "manifest":
        return Delivery(part_id, job_id, file_name, int(rows) if rows.isdecimal() else 0, sha256, body)
    try:
        envelope = msgspec.json.decode(body, type=Body)
    except msgspec.DecodeError as error:
        raise ValueError(f"the body is not the JSON of an export: {error}") from None
    count = sum(len(rows_) for rows_ in msgspec.structs.astuple(envelope))
    if str(count) != rows:
        raise ValueError(f"the body has {count} rows, Meterpost-Rows says {rows}")
    return Delivery(part_id, job_id, file_name, count, sha256, body)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise ValueError(f"the header {name} is missing")
    return value


def _stored_before(requests: Path) -> dict[str, str]:
    """Return the hashes of the parts that were taken, by id; a line that was cut off by an end does not count."""
    known: dict[str, str] = {}
    if not requests.exists():
        return known
    with requests.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                request = json.loads(line)
            except ValueError:
                continue
            if request["status"] == 200:
                known[request["id"]] = request["sha256"]
    return known


def _end_the_last_line(requests: Path) -> None:
    """End a line that an end cut off, so that the next one is not lost with it."""
    if requests.exists() and requests.stat().st_size:
        with requests.open("rb+") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _write_durably(file: Path, content: bytes) -> None:
    """Write a file, complete or not at all, so that it survives a loss of power once we have said so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def serve(folder: Path, port: int, tls: ssl.SSLContext, stopping: asyncio.Event, host: str = LOOPBACK) -> None:
    """Serve until told to stop; says on standard output where."""
    runner = web.AppRunner(Receiver(folder, SystemClock()).application(), access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        await site.start()
        print(f"https://{host}:{runner.addresses[0][1]}", flush=True)  # noqa: T201 - the command's answer
        await stopping.wait()
    finally:
        await runner.cleanup()


async def _main(options: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        tls.load_cert_chain(options.certificate, options.key)
        await serve(options.folder, options.port, tls, stopping, options.host)
    except OSError as error:
        print(f"https_receiver: cannot serve on port {options.port}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the receiver until SIGTERM or SIGINT and return the exit code."""
    parser = argparse.ArgumentParser(prog="https_receiver", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the parts are kept, by job")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; default: %(default)s, loopback only")
    parser.add_argument("--port", type=int, required=True, help="port; 0 takes a free one")
    parser.add_argument("--certificate", type=Path, required=True, help="the server's certificate (PEM)")
    parser.add_argument("--key", type=Path, required=True, help="its private key (PEM)")
    return asyncio.run(_main(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
