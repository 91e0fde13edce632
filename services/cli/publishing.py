"""Publishing readings to the real topics as devices would, at arrivals of our choosing. Used by the simulator too.

On reading topics with CreateTime the producer sets each record's arrival. Records go out in the order of their
arrivals; ticks follow only when every record before them is stored by the broker, so the platform's clock never passes
a reading that is still on its way.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from services.core.messages import ReadingUpload, WireReading, encode
from services.core.readings import MAX_RECORD_READINGS
from services.core.windows import DEFAULT_GRACE
from services.platform.kafka import Partition, Producer, acknowledged

MAX_IN_FLIGHT = 2_000
SHORTEST_TICK_STEP = timedelta(minutes=1)
# Each round waits for the broker, some 30 ms: years of readings are published in seconds, with coarser steps.
MOST_TICK_ROUNDS = 150
PAST_GRACE = DEFAULT_GRACE + timedelta(seconds=1)
"""After the last arrival the clock must come so far for the last windows to close."""


class RoutedReading(NamedTuple):
    """A reading and the device that reports it; `topic` without the cluster's prefix."""

    topic: str
    device_id: str
    ends_at: datetime
    reading: WireReading


class Upload(NamedTuple):
    """One record to be: what a device sends at once."""

    arrives_at: datetime
    topic: str
    device_id: str
    readings: Sequence[WireReading]


def uploads_of(readings: Iterable[RoutedReading], delay: timedelta) -> list[Upload]:
    """Group readings into one upload per device and interval end, in the order of arrival: interval end + `delay`."""
    groups: dict[tuple[datetime, str, str], list[WireReading]] = {}
    for topic, device_id, ends_at, reading in readings:
        groups.setdefault((ends_at, topic, device_id), []).append(reading)
    return [
        Upload(ends_at + delay, topic, device_id, part)
        for ends_at, topic, device_id in sorted(groups)
        for part in _parts(groups[ends_at, topic, device_id])
    ]


def _parts(readings: Sequence[WireReading]) -> Iterable[Sequence[WireReading]]:
    return (readings[at : at + MAX_RECORD_READINGS] for at in range(0, len(readings), MAX_RECORD_READINGS))


class ReadingPublisher:
    """Sends uploads and ticks. Bounded in flight; not safe for several tasks at once."""

    def __init__(self, producer: Producer, *, partitions: Iterable[Partition], topic_prefix: str = "") -> None:
        """`partitions` are those of both reading topics, under their names on the cluster."""
        self._producer = producer
        self._partitions = sorted(partitions)
        self._prefix = topic_prefix
        self._waiting: list[asyncio.Future[Any]] = []

    async def publish(self, upload: Upload) -> None:
        """Hand one upload over. Callers send in the order of arrival. Raises Unavailable."""
        if len(self._waiting) >= MAX_IN_FLIGHT:
            await self.settle()
        message = ReadingUpload(upload.device_id, upload.arrives_at, list(upload.readings))
        self._waiting.append(
            await self._producer.enqueue(
                self._prefix + upload.topic,
                encode(message),
                key=upload.device_id.encode(),
                created_at=upload.arrives_at,
            )
        )

    async def tick(self, at: datetime) -> None:
        """Move the arrival clock of every partition to `at`, once everything published before is stored."""
        await self.settle()
        for topic, partition in self._partitions:
            self._waiting.append(
                await self._producer.enqueue(topic, None, partition=partition, created_at=at, is_tick=True)
            )

    async def settle(self) -> None:
        """Wait until the broker has stored everything handed over so far. Raises Unavailable."""
        waiting, self._waiting = self._waiting, []
        await acknowledged(waiting)


async def replay(
    publisher: ReadingPublisher,
    uploads: Sequence[Upload],
    *,
    until: datetime | None,
    published: Callable[[Upload], None],
) -> None:
    """Publish uploads in their order, with ticks in step, so that windows close as they would have.

    `until` is where the arrival clock stands afterwards; None sends no ticks at all, as is right where the broker sets
    the arrival. `published` is told of each upload handed over. Raises Unavailable.
    """
    step = tick_step(uploads)
    next_tick = uploads[0].arrives_at + step if uploads else None
    for upload in uploads:
        if until is not None and next_tick is not None and upload.arrives_at >= next_tick:
            # A tick says that everything *before* it has come, so the upload may still follow at the same time.
            await publisher.tick(upload.arrives_at)
            next_tick = upload.arrives_at + step
        await publisher.publish(upload)
        published(upload)
    if until is not None:
        await publisher.tick(until)
    await publisher.settle()


def tick_step(uploads: Sequence[Upload]) -> timedelta:
    """Return how far the clock moves between two rounds of ticks: minutes, longer for years of readings."""
    if not uploads:
        return SHORTEST_TICK_STEP
    return max(SHORTEST_TICK_STEP, (uploads[-1].arrives_at - uploads[0].arrives_at) / MOST_TICK_ROUNDS)
