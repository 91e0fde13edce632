"""The batches that are being written, each behind the one before.

While the older is moved on and committed, the newer's rows are on their way already.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from services.ingest.store import Turn, at_once

MOST_AT_ONCE = 2


class InFlight:
    """Writes under way, oldest first, at most MOST_AT_ONCE of them."""

    def __init__(self) -> None:
        self._writes: deque[asyncio.Task[None]] = deque()

    async def has_room(self) -> None:
        """Wait until another one may be started. Raises what an older one raised."""
        self.look()
        while len(self._writes) >= MOST_AT_ONCE:
            await asyncio.wait({self._writes[0]})
            self.look()

    def look(self) -> None:
        """Forget what has been written. Raises what its writing raised."""
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def start(self, write: Callable[[Turn], Awaitable[None]]) -> None:
        """Start a write; it is handed what to wait for before it builds on the one before it."""
        turn = _after(self._writes[-1]) if self._writes else at_once

        async def run() -> None:
            await write(turn)

        self._writes.append(asyncio.create_task(run()))

    async def finish(self) -> None:
        """Wait until nothing is under way. Raises what the oldest that failed raised, when all have ended."""
        if self._writes:
            await asyncio.wait(self._writes)  # whoever is cancelled here can still abandon them
        writes, self._writes = self._writes, deque()
        errors = [write.exception() for write in writes]  # all are looked at: else the event loop reports the others
        for error in errors:
            if error is not None:
                raise error

    async def abandon(self) -> None:
        """Cancel everything; never raises."""
        for write in self._writes:
            write.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)


def _after(write: asyncio.Task[None]) -> Turn:
    async def turn() -> None:
        # Not by awaiting it: whoever cancels the one who waits does not mean the one that is waited for.
        await asyncio.wait({write})
        write.result()

    return turn
