"""A TCP proxy with faults: latency, little bandwidth, a cut at byte k, a reset, a close that is slow or never comes."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_CHUNK_BYTES = 16 * 1024


@dataclass
class Faults:
    """What goes wrong on each connection from now on."""

    latency_s: float = 0.0
    """Before each piece, in both directions."""
    bytes_per_s: int | None = None
    """From the server to the client."""
    cut_at_byte: int | None = None
    """The connection ends when so many bytes have gone from the client to the server."""
    cut_answers_at_byte: int | None = None
    """As `cut_at_byte`, from the server to the client."""
    by_reset: bool = False
    """It ends by a reset instead of an orderly close."""
    holds_close: bool = False
    """The end of one side is not passed on to the other."""


class FaultProxy:
    """Forwards to one server with the faults that `faults` says at the moment a connection is made."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.faults = Faults()
        self.port = 0
        self.accepted = 0
        """How many connections were made."""

    @asynccontextmanager
    async def running(self, *, host: str = "127.0.0.1") -> AsyncIterator["FaultProxy"]:
        """Listen on a free port of loopback."""
        server = await asyncio.start_server(self._serve, host, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await self.end_connections()

    def stall(self) -> None:
        """Accept, and forward nothing from now on."""
        self._flowing.clear()

    async def end_connections(self) -> None:
        """End the connections that there are."""
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with suppress(asyncio.CancelledError):  # the end of the test, or of the connections
            await self._forward(reader, writer, self.faults)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> None:
        writers = [writer]
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            writers.append(upstream_writer)
            up = asyncio.ensure_future(self._pump(reader, upstream_writer, faults, cut_at=faults.cut_at_byte))
            down = asyncio.ensure_future(
                self._pump(
                    *(upstream_reader, writer, faults),
                    cut_at=faults.cut_answers_at_byte,
                    bytes_per_s=faults.bytes_per_s,
                )
            )
            try:
                done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                if faults.holds_close and not (up in done and up.result()):
                    await asyncio.wait({up, down})
                    await asyncio.Event().wait()  # until the test ends
            finally:
                up.cancel()
                down.cancel()
        except OSError:
            pass  # the server is away: the client's connection ends, too
        finally:
            for one in writers:
                if faults.by_reset:
                    _reset_on_close(one)
                    one.transport.abort()
                else:
                    one.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        faults: Faults,
        *,
        cut_at: int | None = None,
        bytes_per_s: int | None = None,
    ) -> bool:
        """Forward until the end; tell whether it was cut."""
        passed = 0
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES if bytes_per_s is None else 1):
                await self._flowing.wait()
                if faults.latency_s:
                    await asyncio.sleep(faults.latency_s)
                if bytes_per_s is not None:
                    await asyncio.sleep(1 / bytes_per_s)
                if cut_at is not None and passed + len(data) >= cut_at:
                    writer.write(data[: cut_at - passed])
                    await writer.drain()
                    return True
                passed += len(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof() if writer.can_write_eof() and not faults.holds_close else None
        return False


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    made = writer.get_extra_info("socket")
    if made is not None:
        with suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
