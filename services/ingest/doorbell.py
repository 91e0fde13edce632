"""Tells windowing that partitions moved on: now and then, and at once where a window may have become due by it.

None of the events is needed. Without them windowing finds out when it looks by itself.
"""

import time
from datetime import timedelta

import structlog

from services.core.messages import IngestProgress, encode
from services.core.windows import RESOLUTIONS_MINUTES, due_until
from services.ingest.batch import Batch
from services.platform.errors import Unavailable
from services.platform.kafka import Partition, Producer

INTERVAL_SECONDS = 1.0
SOON_SECONDS = 0.1
"""Even where windows become due: a replay passes many cut-offs in a second."""
_FINEST_MINUTES = min(RESOLUTIONS_MINUTES)
log = structlog.get_logger()


class Doorbell:
    """Collects what moved and publishes the latest state of each partition."""

    def __init__(self, producer: Producer, topic: str, grace: timedelta) -> None:
        """`grace`: how long windows wait after their end."""
        self._producer = producer
        self._topic = topic
        self._grace = grace
        self._moved: dict[Partition, IngestProgress] = {}
        self._told: dict[Partition, IngestProgress] = {}
        self._is_soon = False
        self._last_ring = 0.0

    def note(self, batch: Batch) -> None:
        """Remember how far a committed batch moved its partitions."""
        for move in batch.advances:
            watermark = move.position.watermark
            if watermark is not None:
                key = (move.topic, move.partition)
                self._moved[key] = event = IngestProgress(*key, move.position.next_offset, watermark)
                self._is_soon = self._is_soon or self._passes_a_cut_off(self._told.get(key), event)

    def _passes_a_cut_off(self, before: IngestProgress | None, after: IngestProgress) -> bool:
        reached = due_until(after.watermark, _FINEST_MINUTES, self._grace)
        return before is None or due_until(before.watermark, _FINEST_MINUTES, self._grace) < reached

    async def ring(self) -> None:
        """Publish what has been noted, unless the last time is too short ago."""
        pause = SOON_SECONDS if self._is_soon else INTERVAL_SECONDS
        if not self._moved or time.monotonic() - self._last_ring < pause:
            return
        self._last_ring = time.monotonic()
        self._is_soon = False
        moved, self._moved = self._moved, {}
        self._told.update(moved)
        try:
            for (topic, partition), event in moved.items():
                await self._producer.enqueue(self._topic, encode(event), key=f"{topic}/{partition}".encode())
        except Unavailable as error:
            log.warning("doorbell_failed", error=str(error))
