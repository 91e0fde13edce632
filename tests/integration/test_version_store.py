"""The two reading tables hold what the version order says, however versions come: cut, interleaved, at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.columns import Columns
from services.core.readings import ReadingVersion
from services.ingest.batch import Advance, Batch, Position
from services.ingest.store import IngestStore
from services.ingest.write_plan import HighWaterMarks, encode_plan
from services.platform.health import Health
from services.platform.kafka import Partition
from services.platform.metrics import INGEST_MERGED_BATCHES, SERVER_WAITS
from services.platform.postgres import Patience, Pool, connect_pool
from tests.support.exactness import assert_versions
from tests.support.stack import Databases

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
COUNTS = "SELECT sum(stored_count)::integer, sum(next_offset)::integer FROM ingest_progress"
TABLES = "reading, reading_superseded, rejected_reading, ingest_progress"
# By number: two partitions of one topic and one of the other.
PARTITIONS: tuple[Partition, ...] = (("readings.bridge", 0), ("readings.bridge", 1), ("readings.logger", 0))
SOURCE_TOPICS = {"readings.bridge": 0, "readings.logger": 1}


class Step(NamedTuple):
    """One batch: the next readings of one partition, each (meter, minute, revision, seconds since the one before)."""

    partition: int
    readings: list[tuple[int, int, int, int]]
    forget_marks: bool


steps = st.lists(
    st.builds(
        Step,
        partition=st.integers(0, len(PARTITIONS) - 1),
        readings=st.lists(
            # Minute 720 is the next day's first: readings of one batch may belong to two day partitions.
            st.tuples(st.integers(1, 2), st.sampled_from([0, 1, 720]), st.integers(0, 1), st.integers(0, 1)),
            max_size=5,
        ),
        forget_marks=st.booleans(),
    ),
    max_size=7,
)


class Writer:
    """A process of ingest, reduced to its store and its marks."""

    def __init__(self, pool: Pool) -> None:
        self._store = IngestStore(pool)
        self._marks = HighWaterMarks()
        self._patience = Patience(Health(), asyncio.Event())
        self.positions: dict[Partition, Position] = {}
        self.versions: list[ReadingVersion] = []

    async def claim(self, partitions: tuple[Partition, ...]) -> None:
        self.positions = await self._store.claim(dict.fromkeys(partitions, 0), "test")

    def forget_marks(self) -> None:
        self._marks = HighWaterMarks()

    async def write(self, partition: Partition, readings: list[tuple[int, int, int, int]]) -> None:
        """Store readings as one batch, each the only one of its record."""
        position = self.positions[partition]
        watermark = position.watermark or NOON
        versions = []
        for place, (meter_id, minute, revision, seconds) in enumerate(readings):
            watermark += seconds * SECOND
            offset = position.next_offset + place
            topic = SOURCE_TOPICS[partition[0]]
            measured_at = NOON + minute * MINUTE
            value = len(self.versions) + place
            origin = (offset, meter_id, revision, partition[1], 0)
            versions.append(ReadingVersion(measured_at, watermark, value, *origin, 1, topic, False))
        after = Position(position.epoch, position.next_offset + len(versions), watermark, NOON)
        columns = Columns.of_versions(versions)
        advance = Advance(*partition, position.epoch, position.next_offset, after, len(versions), 0)
        batch, plan = Batch(columns, [], [advance]), await encode_plan(self._marks.plan(columns))
        await self._patience.postgres(lambda: self._store.store(batch, plan))
        self.positions[partition] = after
        self.versions += versions


@asynccontextmanager
async def writers(url: str, count: int) -> AsyncIterator[list[Writer]]:
    """Lend writers with a pool each."""
    pools = [await connect_pool(url, max_size=2) for _ in range(count)]
    try:
        yield [Writer(pool) for pool in pools]
    finally:
        for pool in pools:
            pool.terminate()


@pytest.fixture(scope="module")
def shared_url(databases: Databases) -> Iterator[str]:
    """Give one database for all examples of a property; each begins with empty tables."""
    with databases.fresh() as url:
        yield url


def test_any_batches_in_any_interleaving_leave_what_the_order_says(shared_url: str) -> None:
    with asyncio.Runner() as runner:  # all examples share it, and with it their connections
        lent = writers(shared_url, 1)
        [writer] = runner.run(lent.__aenter__())
        connection = runner.run(asyncpg.connect(shared_url))

        async def check(some: list[Step]) -> None:
            await connection.execute(f"TRUNCATE {TABLES}")
            writer.versions = []
            writer.forget_marks()
            await writer.claim(PARTITIONS)
            for step in some:
                if step.forget_marks:
                    writer.forget_marks()
                await writer.write(PARTITIONS[step.partition], step.readings)
            last = max((version.arrived_at for version in writer.versions), default=NOON)
            cut_offs = [NOON + second * SECOND for second in range(-1, (last - NOON) // SECOND + 1)]
            await assert_versions(connection, writer.versions, cut_offs)
            counts = await connection.fetchrow(COUNTS)
            assert counts is not None
            assert tuple(counts) == (len(writer.versions), len(writer.versions))

        @settings(max_examples=150)
        @given(steps)
        def holds(some: list[Step]) -> None:
            runner.run(check(some))

        try:
            holds()
        finally:
            runner.run(connection.close())
            runner.run(lent.__aexit__(None, None, None))


async def test_two_writers_of_the_same_readings_at_once_lose_nothing(database_url: str) -> None:
    """One copies a minute and then merges the one before, the other merges both: they collide and deadlock."""
    rounds, meters = 60, range(1, 60)
    database = urlsplit(database_url).path.removeprefix("/")
    await _execute(database_url, f"ALTER DATABASE {database} SET deadlock_timeout = '20ms'")
    collisions, waits = INGEST_MERGED_BATCHES._value.get(), SERVER_WAITS.labels("PostgreSQL")._value.get()
    async with writers(database_url, 2) as (copier, merger):
        for writer, partition in ((copier, PARTITIONS[0]), (merger, PARTITIONS[2])):
            await writer.claim((partition,))
            await writer.write(partition, [(meter, 0, 0, 0) for meter in meters])
        chance = random.Random(3)
        for minute in range(1, rounds + 1):
            both = [
                [
                    (meter, one, chance.randrange(2), chance.randrange(2))
                    for one in (minute - 1, minute)
                    for meter in meters
                ]
                for _writer in range(2)
            ]
            if minute % 4:
                merger.forget_marks()
            await asyncio.gather(copier.write(PARTITIONS[0], both[0]), merger.write(PARTITIONS[2], both[1]))
        connection = await asyncpg.connect(database_url)
        try:
            versions = copier.versions + merger.versions
            last = max(version.arrived_at for version in versions)
            await assert_versions(connection, versions, [NOON + SECOND, NOON + (last - NOON) / 2, last])
            assert await connection.fetchval("SELECT sum(stored_count)::integer FROM ingest_progress") == len(versions)
        finally:
            await connection.close()
    assert INGEST_MERGED_BATCHES._value.get() > collisions, "the writers never took a stored reading for new"
    assert SERVER_WAITS.labels("PostgreSQL")._value.get() > waits, "the writers never deadlocked"


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
