"""Tells windowing that partitions moved on: at most one event per partition and second, none of them needed."""

import time

import structlog

from services.core.messages import IngestProgress, encode
from services.ingest.batch import Batch
from services.platform.errors import Unavailable
from services.platform.kafka import Partition, Producer

INTERVAL_SECONDS = 1.0
log = structlog.get_logger()


class Doorbell:
    """Collects what moved and publishes the latest state of each partition."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._moved: dict[Partition, IngestProgress] = {}
        self._last_ring = 0.0

    def note(self, batch: Batch) -> None:
        """Remember how far a committed batch moved its partitions."""
        for move in batch.advances:
            watermark = move.position.watermark
            if watermark is not None:
                event = IngestProgress(move.topic, move.partition, move.position.next_offset, watermark)
                self._moved[move.topic, move.partition] = event

    async def ring(self) -> None:
        """Publish what has been noted, unless the last time is less than a second ago."""
        if not self._moved or time.monotonic() - self._last_ring < INTERVAL_SECONDS:
            return
        self._last_ring = time.monotonic()
        moved, self._moved = self._moved, {}
        try:
            for (topic, partition), event in moved.items():
                await self._producer.enqueue(self._topic, encode(event), key=f"{topic}/{partition}".encode())
        except Unavailable as error:
            log.warning("doorbell_failed", error=str(error))
