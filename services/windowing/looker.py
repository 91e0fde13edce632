"""Looks what is due: reads how far everything has been stored, and announces the windows that can be closed."""

import time
from collections.abc import Mapping
from datetime import datetime

import structlog

from services.core.messages import encode
from services.core.windows import RESOLUTIONS_MINUTES, due_until, opening, platform_watermark
from services.platform.kafka import Partition, Producer, acknowledged
from services.platform.kafka_admin import Admin
from services.platform.postgres import Patience
from services.platform.topics import READING_TOPICS, WINDOWS_DUE
from services.windowing.announcements import Announcements, BucketKey
from services.windowing.closer import Closer
from services.windowing.forcing import furthest
from services.windowing.held import tell_held
from services.windowing.settings import WindowingSettings
from services.windowing.store import Progress, WindowStore

log = structlog.get_logger()


class Looker:
    """One look is `look`; it may be repeated at any time, by any number of processes."""

    def __init__(
        self,
        settings: WindowingSettings,
        store: WindowStore,
        admin: Admin,
        producer: Producer,
        closer: Closer,
        patience: Patience,
    ) -> None:
        self._settings = settings
        self._store = store
        self._admin = admin
        self._producer = producer
        self._closer = closer
        self._patience = patience
        self._reading_topics = tuple(settings.topic(name) for name in READING_TOPICS)
        self._announcements = Announcements(settings.repeat_after_seconds)
        self._missing: frozenset[Partition] = frozenset()

    @property
    def unserved_since(self) -> float | None:
        """Since when (monotonic clock) announced windows wait without any being closed; None when none wait."""
        return self._announcements.unserved_since

    async def look(self) -> None:
        """Announce what is due. Raises Unavailable only when told to stop while a server is away."""
        # The progress first: a partition that is added after it was read holds only records that arrived later.
        progress = await self._patience.postgres(self._store.progress)
        partitions = await self._patience.kafka(lambda: self._admin.partitions(self._reading_topics))
        watermarks = {key: progress[key].watermark if key in progress else None for key in partitions}
        self._tell_missing(partitions, progress)
        tell_held(watermarks, self._settings.grace)
        due = await self._due(watermarks)
        if not due:
            return
        frontiers = await self._frontiers(progress, partitions)
        if not frontiers:
            return  # a decision came before any reading
        for resolution in RESOLUTIONS_MINUTES:
            await self._closer.tell_closed(resolution)
        await self._announce(frontiers, due)

    async def _due(self, watermarks: Mapping[Partition, datetime | None]) -> dict[int, datetime]:
        """Return how far each resolution may be closed; empty: nothing may, because some partition was not heard."""
        grace = self._settings.grace
        watermark = platform_watermark(watermarks, watermarks)
        forces = await self._patience.postgres(self._store.forces)
        due = {}
        for resolution in RESOLUTIONS_MINUTES:
            forced = furthest(forces, watermarks, resolution, grace)
            points = [] if watermark is None else [due_until(watermark, resolution, grace)]
            points += [] if forced is None else [forced.until]
            if points:
                due[resolution] = max(points)
        return due

    async def _frontiers(
        self, progress: dict[Partition, Progress], partitions: frozenset[Partition]
    ) -> dict[BucketKey, datetime]:
        frontiers = await self._patience.postgres(self._store.frontiers)
        arrivals = [progress[key].first_arrival for key in partitions if key in progress]
        heard = [arrival for arrival in arrivals if arrival is not None]
        if frontiers or not heard:
            return frontiers
        first = min(heard)
        openings = {resolution: opening(first, resolution, self._settings.grace) for resolution in RESOLUTIONS_MINUTES}
        await self._patience.postgres(lambda: self._store.open(openings))
        log.info("opened", first_arrival=first.isoformat())
        return await self._patience.postgres(self._store.frontiers)

    async def _announce(self, frontiers: dict[BucketKey, datetime], due: dict[int, datetime]) -> None:
        topic = self._settings.topic(WINDOWS_DUE)
        picked = self._announcements.pick(frontiers, due, time.monotonic())

        async def publish() -> None:
            # A second copy, after a failure in the middle, is harmless.
            await acknowledged(
                [
                    await self._producer.enqueue(
                        topic, encode(message), key=f"{message.resolution_minutes}/{message.bucket}".encode()
                    )
                    for message in picked
                ]
            )

        if picked:
            await self._patience.kafka(publish)

    def _tell_missing(self, partitions: frozenset[Partition], progress: dict[Partition, Progress]) -> None:
        """Log, on change, from which partitions nothing has been stored: they hold every window open."""
        missing = frozenset(key for key in partitions if key not in progress or progress[key].watermark is None)
        if missing != self._missing:
            self._missing = missing
            log.info("partitions_not_heard", partitions=sorted(f"{topic}/{number}" for topic, number in missing))
