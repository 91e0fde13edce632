"""Ticks: an idle partition must not hold windows open, a lagging one must.

The owner of a partition that is caught up and idle appends a record without a value to it, at most one a second; its
append time moves the watermark as any record's does. So only the broker's clock counts.
"""

import time
from collections.abc import Iterable

import structlog

from services.platform.errors import Unavailable
from services.platform.kafka import GroupConsumer, Partition, Producer
from services.platform.metrics import INGEST_TICKS

IDLE_SECONDS = 1.0
log = structlog.get_logger()


class Ticker:
    """Appends ticks to the partitions of `topics` that this process owns."""

    def __init__(self, producer: Producer, consumer: GroupConsumer, topics: frozenset[str]) -> None:
        self._producer = producer
        self._consumer = consumer
        self._topics = topics
        self._last_activity: dict[Partition, float] = {}

    def saw_records(self, partitions: Iterable[Partition]) -> None:
        """Note that records came: these partitions are not idle."""
        now = time.monotonic()
        for partition in partitions:
            self._last_activity[partition] = now

    async def tick(self, next_offsets: dict[Partition, int]) -> None:
        """Append a tick to every partition that has been idle and caught up for a second.

        A tick that fails is tried again a second later; nothing depends on a single one.
        """
        now = time.monotonic()
        for partition, next_offset in next_offsets.items():
            if partition[0] not in self._topics:
                continue
            highwater = self._consumer.highwater(partition)
            if highwater is None:
                continue
            # What is fetched and not yet stored stands before the tick, so it is heard first.
            if next_offset < highwater and not await self._consumer.has_fetched_all(partition):
                continue
            if now - self._last_activity.setdefault(partition, now) < IDLE_SECONDS:
                continue
            self._last_activity[partition] = now
            try:
                await self._producer.enqueue(partition[0], None, partition=partition[1], is_tick=True)
            except Unavailable as error:
                log.warning("tick_failed", topic=partition[0], partition=partition[1], error=str(error))
                return
            INGEST_TICKS.inc()
