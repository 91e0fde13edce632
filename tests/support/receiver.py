"""A customer's HTTPS server inside the test, which answers as the test's script says."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock

LOOPBACK = "127.0.0.1"


class Received(NamedTuple):
    """One request as it came."""

    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def part_id(self) -> str:
        return self.headers["webhook-id"]


Answering = Callable[["ScriptedReceiver", web.Request], Awaitable[web.StreamResponse]]


class Authority(NamedTuple):
    """A certificate authority that jobs may trust, and a server's side of it."""

    ca_pem: str
    server: ssl.SSLContext


def make_authority(folder: Path) -> Authority:
    """Make an authority and a server certificate for localhost."""
    files: CertificateFiles = ensure_certificates(folder, SystemClock().now())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.server, files.server_key)
    return Authority(files.authority.read_text(encoding="ascii"), server)


class ScriptedReceiver:
    """Remembers every request. `script` holds what the next ones are answered; afterwards `otherwise` does."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.script: deque[Answering] = deque()
        self.unread: deque[Answering] = deque()
        """Goes before the script, with a request whose body nobody has read; it is not remembered."""
        self.otherwise: Answering = status(200)
        self.closing = asyncio.Event()
        self.at_once = 0
        self.most_at_once = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self.port}/in"

    @property
    def accepted(self) -> list[Received]:
        """What was answered with a success, in the order of its coming."""
        return [request for request in self.received if request.status == 200]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.unread:
            return await self.unread.popleft()(self, request)
        body = await request.read()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        place = len(self.received)
        self.received.append(Received(dict(request.headers), body, 0))
        answering = self.script.popleft() if self.script else self.otherwise
        try:
            response = await answering(self, request)
            self.received[place] = self.received[place]._replace(status=response.status)
        finally:
            self.at_once -= 1
        return response


@asynccontextmanager
async def running_receiver(
    server: ssl.SSLContext, port: int = 0, *, host: str = LOOPBACK
) -> AsyncIterator[ScriptedReceiver]:
    """Run a receiver; with a port given, on that one."""
    receiver = ScriptedReceiver()
    app = web.Application(client_max_size=4 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", receiver._handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=server)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        receiver.closing.set()
        await runner.cleanup()


def status(code: int, text: str = "", headers: Mapping[str, str] | None = None) -> Answering:
    """Answer with this status."""

    async def answer(_receiver: ScriptedReceiver, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=text, headers=headers)

    return answer


def hang() -> Answering:
    """Never answer."""

    async def answer(receiver: ScriptedReceiver, _request: web.Request) -> web.StreamResponse:
        await receiver.closing.wait()
        return web.Response(status=500)

    return answer


def hang_after_headers(code: int) -> Answering:
    """Send a status and headers, and then nothing."""

    async def answer(receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=code)
        await response.prepare(request)
        await receiver.closing.wait()
        return response

    return answer


def dribble(code: int) -> Answering:
    """Send a status, and then a body that never ends, a byte at a time."""

    async def answer(receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=code)
        await response.prepare(request)
        while not receiver.closing.is_set():
            try:
                await response.write(b".")
                async with asyncio.timeout(0.05):
                    await receiver.closing.wait()
            except TimeoutError:
                continue
            except ConnectionError:
                break
        return response

    return answer


@asynccontextmanager
async def raw_server(server: ssl.SSLContext | None, piece: bytes, every_seconds: float) -> AsyncIterator[str]:
    """Run a server that sends the bytes of `piece` over and over, one at a time, and never makes an answer of them."""
    closing = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not closing.is_set():
                for byte in piece or [None]:
                    writer.write(b"" if byte is None else bytes([byte]))
                    await writer.drain()
                    try:
                        async with asyncio.timeout(every_seconds):
                            await closing.wait()
                    except TimeoutError:
                        continue
        except OSError:
            pass
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(serve, LOOPBACK, 0, ssl=server)
    try:
        yield f"https://{LOOPBACK}:{listener.sockets[0].getsockname()[1]}/"
    finally:
        closing.set()
        listener.close()
