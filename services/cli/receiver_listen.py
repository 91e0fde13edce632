"""A small HTTPS receiver that checks each part as it arrives and keeps nothing of it."""

import asyncio
import signal
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from aiohttp import web

from services.core.received_requests import check_hash, check_signature, read_body, read_request
from services.core.webhooks import SIGNATURE_HEADER
from services.platform.clock import Clock
from services.platform.errors import UserError

# A part has at most 1 MB; a little more, so that a mistake of the sender's is named rather than cut off.
MAX_BODY_BYTES = 2 * 1024 * 1024
# Ids that are remembered, so that memory stays flat however long it listens.
_MOST_KNOWN = 100_000


class Judged(NamedTuple):
    """What became of one POST."""

    status: int
    said: str
    id: str | None
    file: str | None
    rows: int
    bytes: int
    signature: str
    """checked, unchecked (nobody gave the secret) or none."""


class Listener:
    """Judges each POST by itself, and against those of the same id before it."""

    def __init__(self, keys: Sequence[bytes], clock: Clock, tell: Callable[[Judged], None]) -> None:
        self._keys = keys
        self._clock = clock
        self._tell = tell
        self._known: OrderedDict[str, str] = OrderedDict()

    def application(self) -> web.Application:
        """Return the web application, which takes a POST on any path."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/{path:.*}", self._post)
        return app

    async def _post(self, request: web.Request) -> web.Response:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            sentence = f"the body is larger than {MAX_BODY_BYTES:,} bytes; a part has at most 1 MB"
            judged = _refused(413, sentence, request.headers)
        else:
            judged = self.judge(request.headers, body)
        self._tell(judged)
        return web.Response(status=judged.status, text=judged.said + "\n")

    def judge(self, headers: Mapping[str, str], body: bytes) -> Judged:
        """Return the answer to a POST: 2xx only where everything about it is sound."""
        try:
            request = read_request(headers)
            check_hash(request, body)
        except ValueError as error:
            return _refused(400, str(error), headers, len(body))
        signing = "unchecked" if headers.get(SIGNATURE_HEADER) else "none"
        if self._keys:
            try:
                check_signature(headers, body, self._keys, self._clock.now())
            except ValueError as error:
                return _refused(401, str(error), headers, len(body))
            signing = "checked"
        try:
            read_body(request, headers, body)
        except ValueError as error:
            return _refused(422, str(error), headers, len(body))
        known = self._known.setdefault(request.part_id, request.sha256)
        self._known.move_to_end(request.part_id)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        if known != request.sha256:
            return _refused(409, f"{request.part_id} came before with other bytes", headers, len(body))
        return Judged(200, "sound", request.part_id, request.file_name, request.row_count, len(body), signing)


def _refused(status: int, sentence: str, headers: Mapping[str, str], byte_count: int = 0) -> Judged:
    part_id, file_name = headers.get("webhook-id"), headers.get("Meterpost-Filename")
    return Judged(status, sentence, part_id, file_name, 0, byte_count, "none")


async def listen(listener: Listener, host: str, port: int, tls: ssl.SSLContext, started: Callable[[int], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError where the port cannot be had."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    runner = web.AppRunner(listener.application(), access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        started(runner.addresses[0][1])
        await stopping.wait()
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on: {error.strerror}") from None
    finally:
        await runner.cleanup()
