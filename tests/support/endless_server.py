"""A server that says the same again and again, as fast as it is read, and counts how much of it was taken."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.local.ports import LOOPBACK

FLOOD = 64 * 1024 * 1024
"""It ends by itself after so many bytes: a client without limits passes them all, and then hears the end."""


class EndlessServer:
    """What was sent."""

    def __init__(self, begin: bytes, again: bytes) -> None:
        self.port = 0
        self.sent_bytes = 0
        self._begin = begin
        self._again = again * (64 * 1024 // len(again))

    async def serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk until nobody listens."""
        try:
            writer.write(self._begin)
            while self.sent_bytes < FLOOD and not writer.is_closing():
                writer.write(self._again)
                await writer.drain()
                await asyncio.sleep(0)  # so that the end of the connection is heard of
                self.sent_bytes += len(self._again)
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def endless_server(
    again: bytes, *, begin: bytes = b"", tls: ssl.SSLContext | None = None
) -> AsyncIterator[EndlessServer]:
    """Serve on loopback."""
    made = EndlessServer(begin, again)
    server = await asyncio.start_server(made.serve, LOOPBACK, 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
