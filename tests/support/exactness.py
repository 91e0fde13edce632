"""What must be in the database, told by the log alone: each record judged one by one by the pure core."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

from services.core.readings import ReadingVersion, Refusal, SourceTopic, newest
from services.core.registry import Registry
from services.core.uploads import Origin, judge_upload
from services.ingest.store import IngestStore
from services.platform.kafka import GroupConsumer, Partition, arrival_of
from services.platform.postgres import connect_pool
from services.platform.topics import READING_TOPICS, READINGS_LOGGER
from tests.support.platform import Platform
from tests.support.polling import eventually_async

RETENTION = timedelta(days=92)
COLUMNS = ", ".join(ReadingVersion._fields)
_ORDER = (
    "revision DESC, arrived_at DESC, source_topic DESC, source_partition DESC, source_offset DESC, source_place DESC"
)
AS_OF = f"""
    SELECT {COLUMNS} FROM reading WHERE arrived_at <= $1
    UNION ALL
    SELECT * FROM (
        SELECT DISTINCT ON (measured_at, meter_id) {COLUMNS} FROM reading_superseded AS old
        WHERE arrived_at <= $1 AND EXISTS (
            SELECT FROM reading AS new
            WHERE new.measured_at = old.measured_at AND new.meter_id = old.meter_id AND new.arrived_at > $1
        )
        ORDER BY measured_at, meter_id, {_ORDER}
    ) AS best
"""
"""The as-of set of a cut-off: newest versions that arrived in time, and for the others the best that did."""

Key = tuple[datetime, int]


class Progress(NamedTuple):
    """Where a partition must stand."""

    next_offset: int
    stored: int
    refused: int
    watermark: datetime | None


@dataclass
class Truth:
    """Versions, refusals and progress as they follow from the log."""

    versions: list[ReadingVersion] = field(default_factory=list)
    refusals: set[tuple[int, int, int, int, str]] = field(default_factory=set)
    progress: dict[Partition, Progress] = field(default_factory=dict)

    def add(
        self, partition: Partition, number: int, origin: Origin, judged: Sequence[ReadingVersion | Refusal]
    ) -> None:
        """Take over the verdicts on one record."""
        for verdict in judged:
            if isinstance(verdict, ReadingVersion):
                self.versions.append(verdict)
            else:
                self.refusals.add((number, partition[1], origin.offset, verdict.place, verdict.reason.value))


def newest_by_key(versions: Iterable[ReadingVersion], as_of: datetime | None = None) -> dict[Key, ReadingVersion]:
    """Return the newest version of each reading, of those that arrived at `as_of` at the latest."""
    by_key: dict[Key, list[ReadingVersion]] = {}
    for version in versions:
        by_key.setdefault((version.measured_at, version.meter_id), []).append(version)
    found = {key: newest(some, as_of) for key, some in by_key.items()}
    return {key: version for key, version in found.items() if version is not None}


async def truth_of(platform: Platform) -> Truth:
    """Read both reading topics from their beginning and judge every record."""
    registry = await registry_of(platform.database_url)
    topics = [platform.topic(name) for name in READING_TOPICS]
    ends = await platform.end_offsets()
    consumer = GroupConsumer(platform.kafka, group=platform.prefix + "truth", topics=topics, client="test")
    truth = Truth(progress={partition: Progress(0, 0, 0, None) for partition in ends})
    await consumer.start()
    try:
        await eventually_async(lambda: consumer.assigned == ends.keys(), 20, because="the test reads all partitions")
        for partition in ends:
            consumer.seek(partition, 0)

        async def read_on() -> bool:
            for batch in await consumer.poll(timeout_ms=200):
                partition = (batch.topic, batch.partition)
                is_logger = batch.topic == platform.topic(READINGS_LOGGER)
                source = SourceTopic.LOGGER if is_logger else SourceTopic.BRIDGE
                for record in batch.records:
                    before = truth.progress[partition]
                    arrived_at = arrival_of(record, before.watermark)
                    origin = Origin(source.value, batch.partition, record.offset, arrived_at)
                    stored = refused = 0
                    if not record.is_tick:
                        judged = judge_upload(record.value or b"", origin, registry, RETENTION)
                        truth.add(partition, source.value, origin, [*judged.versions, *judged.refusals])
                        stored, refused = len(judged.versions), len(judged.refusals)
                    truth.progress[partition] = Progress(
                        record.offset + 1, before.stored + stored, before.refused + refused, arrived_at
                    )
            return all(truth.progress[partition].next_offset >= end for partition, end in ends.items())

        await eventually_async(read_on, 30, because="the test has read both topics")
    finally:
        await consumer.stop()
    return truth


async def registry_of(database_url: str) -> Registry:
    """Return the registry as ingest loads it."""
    pool = await connect_pool(database_url, max_size=1)
    try:
        registry = Registry()
        registry.apply(await IngestStore(pool).registry_change(0))
        return registry
    finally:
        await pool.close()


async def assert_exact(platform: Platform, cut_offs: Iterable[datetime] = ()) -> Truth:
    """Compare everything that ingest stored with what follows from the log; return the latter."""
    truth = await truth_of(platform)
    connection = await asyncpg.connect(platform.database_url)
    try:
        rows = await connection.fetch(
            "SELECT topic, partition, next_offset, stored_count, refused_count, watermark FROM ingest_progress"
        )
        assert {(row[0], row[1]): Progress(*row[2:]) for row in map(tuple, rows)} == truth.progress
        refused = await connection.fetch(
            "SELECT CASE WHEN topic = $1 THEN 1 ELSE 0 END, partition, source_offset, source_place, reason "
            "FROM rejected_reading",
            platform.topic(READINGS_LOGGER),
        )
        assert len(refused) == len(truth.refusals)
        assert {tuple(row) for row in refused} == truth.refusals
        await assert_versions(connection, truth.versions, cut_offs)
    finally:
        await connection.close()
    return truth


async def assert_versions(
    connection: "asyncpg.Connection[asyncpg.Record]", versions: Sequence[ReadingVersion], cut_offs: Iterable[datetime]
) -> None:
    """Compare both reading tables, and the as-of sets of some cut-offs, with the model."""
    current = await stored_versions(connection, f"SELECT {COLUMNS} FROM reading")
    superseded = await stored_versions(connection, f"SELECT {COLUMNS} FROM reading_superseded")
    assert sorted(current) == sorted(newest_by_key(versions).values())
    assert sorted(current + superseded) == sorted(versions)
    for cut_off in cut_offs:
        found = await stored_versions(connection, AS_OF, cut_off)
        assert sorted(found) == sorted(newest_by_key(versions, cut_off).values()), cut_off


async def stored_versions(
    connection: "asyncpg.Connection[asyncpg.Record]", query: str, *arguments: object
) -> list[ReadingVersion]:
    """Return the versions that a query finds."""
    return [ReadingVersion(*row) for row in await connection.fetch(query, *arguments)]
