"""Where the partitions of this process stand, as metrics: what `meterpost ingest status` shows, for machines.

Every process tells of the partitions that it owns, and only as long as it owns them; of gaps each tells all.
"""

import asyncio
from collections.abc import Iterable, Mapping

import asyncpg
import structlog

from services.core.times import EPOCH
from services.ingest.batch import Position
from services.ingest.progress_queries import gaps_of
from services.platform.errors import MeterpostError
from services.platform.kafka import Partition
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_ends import PartitionEnd, partition_ends
from services.platform.metrics import (
    INGEST_END,
    INGEST_EPOCH,
    INGEST_GAP_RECORDS,
    INGEST_LAG_RECORDS,
    INGEST_LAG_SECONDS,
    INGEST_OWNER,
    INGEST_POSITION,
    INGEST_WATERMARK,
)
from services.platform.postgres import Pool, transaction

EVERY_SECONDS = 5.0
DEADLINE_SECONDS = 10.0
_OF_A_PARTITION = (
    INGEST_POSITION,
    INGEST_END,
    INGEST_LAG_RECORDS,
    INGEST_LAG_SECONDS,
    INGEST_WATERMARK,
    INGEST_EPOCH,
    INGEST_OWNER,
)
log = structlog.get_logger()


class Standing:
    """Keeps the metrics of partitions."""

    def __init__(self, owner: str) -> None:
        """`owner`: this process's name, as `ingest_progress` has it."""
        self._owner = owner
        self._positions: dict[Partition, Position] = {}

    def claimed(self, positions: Mapping[Partition, Position]) -> None:
        """Tell of these partitions from now on, and of no others."""
        for metric in _OF_A_PARTITION:
            metric.clear()
        self._positions = {}
        for partition, position in positions.items():
            INGEST_OWNER.labels(*_labels(partition), self._owner).set(1)
            INGEST_EPOCH.labels(*_labels(partition)).set(position.epoch)
            self.moved(partition, position)

    def moved(self, partition: Partition, position: Position) -> None:
        """Note how far a partition is stored."""
        self._positions[partition] = position
        INGEST_POSITION.labels(*_labels(partition)).set(position.next_offset)
        if position.watermark is not None:
            INGEST_WATERMARK.labels(*_labels(partition)).set((position.watermark - EPOCH).total_seconds())

    async def run(self, kafka: KafkaAccess, pool: Pool, topics: Iterable[str]) -> None:
        """Look again and again at the log's ends and at the gaps, until cancelled."""
        wanted = list(topics)
        while True:
            try:
                if self._positions:
                    self._compare(await partition_ends(kafka, list(self._positions), deadline_s=DEADLINE_SECONDS))
                async with transaction(pool) as connection:
                    gaps = await gaps_of(connection, wanted)
            except (MeterpostError, asyncpg.PostgresError) as error:
                log.info("standing_not_known", error=str(error))
            else:
                INGEST_GAP_RECORDS.clear()
                for gap in gaps:
                    state = "open" if gap.accepted_at is None else "accepted"
                    INGEST_GAP_RECORDS.labels(gap.topic, str(gap.partition), state).inc(gap.records)
            await asyncio.sleep(EVERY_SECONDS)

    def _compare(self, ends: Mapping[Partition, PartitionEnd]) -> None:
        for partition, end in ends.items():
            position = self._positions.get(partition)
            if position is None:
                continue  # lost meanwhile
            labels = _labels(partition)
            lag = max(0, end.end_offset - max(position.next_offset, end.first_offset))
            INGEST_END.labels(*labels).set(end.end_offset)
            INGEST_LAG_RECORDS.labels(*labels).set(lag)
            if not lag:
                INGEST_LAG_SECONDS.labels(*labels).set(0)
            elif end.newest_time is not None and position.watermark is not None:
                behind = (end.newest_time - position.watermark).total_seconds()
                INGEST_LAG_SECONDS.labels(*labels).set(max(0.0, behind))


def _labels(partition: Partition) -> tuple[str, str]:
    return partition[0], str(partition[1])
