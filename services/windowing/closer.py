"""Closes the windows that a message announces, and tells everybody when a resolution moved on."""

import time
from datetime import datetime
from functools import partial

import structlog

from services.core.messages import WindowsClosed, WindowsDue, encode
from services.platform.crash_points import crash_point
from services.platform.errors import Unavailable
from services.platform.kafka import Producer
from services.platform.metrics import WINDOWS_OCCUPIED
from services.platform.postgres import Patience
from services.platform.topics import WINDOWS_CLOSED, WINDOWS_DUE
from services.windowing.announcements import BucketKey
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowOccupied, WindowStore

TURN_SECONDS = 1.0
"""A bucket that is far behind works so long at a time; then the others have their turn."""

log = structlog.get_logger()


class Closer:
    """Serves one message after the other. Serving one twice, or in two processes at once, changes nothing."""

    def __init__(self, settings: WindowingSettings, store: WindowStore, producer: Producer, patience: Patience) -> None:
        self._settings = settings
        self._store = store
        self._producer = producer
        self._patience = patience
        self._slow: set[BucketKey] = set()
        """Buckets that close window by window, because one of their next windows is occupied: so all before it are
        closed, and to try that one costs little."""
        self._occupied: dict[BucketKey, WindowOccupied] = {}
        """Buckets that close no further, and why, as far as we served them. They are tried at every announcement."""

    async def close(self, due: WindowsDue) -> None:
        """Close the bucket's windows, oldest first, for about one turn; announces what is left over again.

        A window that somebody wrote into by hand stops its bucket alone; it is closed once that is deleted. Raises
        Unavailable only when told to stop while a server is away.
        """
        key = BucketKey(due.resolution_minutes, due.bucket)
        if key not in self._store.keys:
            log.warning("unknown_bucket", resolution_minutes=due.resolution_minutes, bucket=due.bucket)
            return
        turn_ends = time.monotonic() + TURN_SECONDS
        before: datetime | None = None
        while not self._patience.stopping.is_set():
            advance = partial(self._store.advance, key, due.due_until, is_one_window=key in self._slow)
            try:
                reached = await self._patience.postgres(advance)
            except WindowOccupied as error:
                if key in self._slow:
                    self._tell_occupied(key, error)
                    return
                self._slow.add(key)
                continue
            self._notice_progress(key, reached)
            if reached is None or reached == before:
                return  # nothing is open yet, or the tables do not confirm that more is due
            await self.tell_closed(due.resolution_minutes)
            if reached >= due.due_until:
                if key not in self._occupied:
                    self._slow.discard(key)
                return
            before = reached
            if time.monotonic() >= turn_ends:
                await self._publish(WINDOWS_DUE, f"{due.resolution_minutes}/{due.bucket}", encode(due))
                return

    def _notice_progress(self, key: BucketKey, reached: datetime | None) -> None:
        """Forget that a window was occupied once its bucket stands behind it."""
        told = self._occupied.get(key)
        if told is not None and reached is not None and reached > told.frontier:
            del self._occupied[key]
            self._slow.discard(key)
            log.info("window_occupied_no_longer", resolution_minutes=key.resolution_minutes, bucket=key.bucket)

    def _tell_occupied(self, key: BucketKey, error: WindowOccupied) -> None:
        """Count each attempt, log the first."""
        WINDOWS_OCCUPIED.labels(str(key.resolution_minutes)).inc()
        told = self._occupied.get(key)
        self._occupied[key] = error
        if told is None or str(told) != str(error):
            log.error(
                "window_occupied",
                resolution_minutes=key.resolution_minutes,
                bucket=key.bucket,
                error=f"an open window holds already what closing it is to write ({error}): somebody wrote that behind "
                "the product's back. This bucket closes no further until it is deleted",
            )

    async def tell_closed(self, resolution_minutes: int) -> None:
        """Move the resolution's common frontier to where all buckets stand, and publish it where it moved."""
        moved = await self._patience.postgres(lambda: self._store.move_closed(resolution_minutes))
        if moved is not None:
            crash_point("windowing.before_event")
            event = WindowsClosed(resolution_minutes, moved)
            await self._publish(WINDOWS_CLOSED, str(resolution_minutes), encode(event))
            log.info("windows_closed", resolution_minutes=resolution_minutes, closed_until=moved.isoformat())

    async def _publish(self, name: str, key: str, message: bytes) -> None:
        try:
            await self._producer.send(self._settings.topic(name), message, key=key.encode())
        except Unavailable as error:
            # Whoever listens looks in the tables by itself, too; and we announce again what nobody closes.
            log.warning("event_not_published", topic=name, error=str(error))
