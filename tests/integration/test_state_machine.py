"""Publish, duplicate, correct, poll, crash, rebalance, close, die while closing, edit the catalog, in any order.

After each step the tables must be what a small model in memory says. The judge of records, both stores, windowing's
crash points and PostgreSQL are the product's own. Kafka is a list for each partition here, because a real one would
allow a few steps a second: what may come of it (records again after a crash, two owners at once) is done to the lists.
The real broker is met in tests/integration/test_ingest*.py and tests/e2e.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.core.readings import ReadingVersion
from services.core.registry import Registry
from services.core.times import to_epoch_milliseconds
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES
from services.ingest.batch import Batch, BatchBuilder, Position, batch_of
from services.ingest.store import IngestStore
from services.ingest.write_plan import HighWaterMarks, encode_plan
from services.platform.errors import Superseded
from services.platform.kafka import Partition, PartitionBatch, Record
from services.platform.postgres import Pool, connect_pool
from services.windowing.store import WindowStore
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    Row,
    TellingEvent,
    expected,
    seed_meters,
)
from tests.support.closing_workers import CRASH_POINTS, Died, Edits, close, dying_at, new_worker
from tests.support.exactness import assert_versions, registry_of
from tests.support.seed import metered, upload
from tests.support.stack import Databases

PARTITIONS: tuple[Partition, ...] = (("readings.bridge", 0), ("readings.bridge", 1), ("readings.logger", 0))
SOURCE_TOPICS = {"readings.bridge": 0, "readings.logger": 1}
MODULI = {5: 1_000}
BUCKETS = 2
DATA = (
    "reading, reading_superseded, rejected_reading, ingest_progress, measurement, meter_event, meter_register, "
    "window_closing, window_frontier, window_closed, window_grace"
)


class World:
    """What all examples share: a database with a catalog, two consumers' pools, one worker's store."""

    def __init__(self, url: str, runner: asyncio.Runner, pool: Pool, registry: Registry) -> None:
        self.url = url
        self.runner = runner
        self.pool = pool
        self.registry = registry
        self.connection = runner.run(asyncpg.connect(url))
        self.seen: Counter[str] = Counter()
        """What happened at all: a test in which nothing closes would say little."""


WORLD: list[World] = []


class Consumer:
    """A process of ingest: where it believes its partitions stand, and its marks."""

    def __init__(self, world: World, name: str) -> None:
        self.store = IngestStore(world.pool)
        self.name = name
        self.builder = BatchBuilder(
            source_topics=SOURCE_TOPICS, raw_retention=timedelta(days=92), recent_readings=1_000
        )
        self.marks = HighWaterMarks()
        self.positions: dict[Partition, Position] = {}


class Platform(RuleBasedStateMachine):
    """The product and the model side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.world = WORLD[0]
        self.clock = T0 + 2 * MINUTE
        self.log: dict[Partition, list[Record]] = {key: [] for key in PARTITIONS}
        self.readings_in: dict[Partition, list[int]] = {key: [] for key in PARTITIONS}
        """How many readings each record has, refused ones included."""
        self.versions: dict[Partition, list[tuple[int, ReadingVersion]]] = {key: [] for key in PARTITIONS}
        """With the offset of their record."""
        self.refused: dict[Partition, list[int]] = {key: [] for key in PARTITIONS}
        self.consumers = [Consumer(self.world, f"ingest-{number}") for number in range(2)]
        self.workers = [new_worker(self.world.pool, BUCKETS) for _ in range(2)]
        self.edits = Edits(UTILITIES, MODULI)
        self.closed: dict[tuple[Any, ...], Row] = {}

    def run(self, coroutine: Any) -> Any:
        return self.world.runner.run(coroutine)

    @initialize()
    def begin(self) -> None:
        self.run(Edits.forget(self.world.connection))
        self.run(self.world.connection.execute(f"TRUNCATE {DATA}"))
        for key in PARTITIONS:
            self.append(key, None, 0)
        self.run(self.assign(0, PARTITIONS))

    def append(self, key: Partition, value: bytes | None, readings: int) -> int:
        """Let the broker append a record; returns its offset."""
        offset = len(self.log[key])
        self.log[key].append(Record(offset, to_epoch_milliseconds(self.clock), b"BR-1", value, value is None))
        self.readings_in[key].append(readings)
        return offset

    def publish_readings(self, key: Partition, made: list[tuple[int, int, int, int]]) -> None:
        """Publish readings (meter, minute, value, revision) as one record."""
        wire = []
        for meter, minute, value, revision in made:
            measured_at = T0 + minute * MINUTE
            reading = metered(meter, measured_at, value, revision=revision)
            if meter in MODULI:
                reading["register"] = reading.pop("pulses")
            wire.append(reading)
        offset = self.append(key, upload("BR-1", wire), len(wire))
        for place, (meter, minute, value, revision) in enumerate(made):
            if meter not in UTILITIES:
                self.refused[key].append(offset)
                continue
            origin = (offset, meter, revision, key[1], place, 1, SOURCE_TOPICS[key[0]], meter in MODULI)
            version = ReadingVersion(T0 + minute * MINUTE, self.clock, value, *origin)
            self.versions[key].append((offset, version))

    @rule(
        key=st.sampled_from(PARTITIONS),
        made=st.lists(
            # Meter 9 is unknown. Minutes before the newest are what comes out of order, or late.
            st.tuples(st.sampled_from([1, 2, 5, 5, 9]), st.integers(0, 9), st.integers(0, 999), st.integers(0, 1)),
            min_size=1,
            max_size=4,
        ),
    )
    def publish(self, key: Partition, made: list[tuple[int, int, int, int]]) -> None:
        newest = (self.clock - T0) // MINUTE - 1
        self.publish_readings(key, [(meter, max(newest - back, 0), *rest) for meter, back, *rest in made])  # type: ignore[misc]

    @precondition(lambda self: any(self.versions.values()))
    @rule(data=st.data(), key=st.sampled_from(PARTITIONS), is_correction=st.booleans())
    def publish_again(self, data: st.DataObject, key: Partition, is_correction: bool) -> None:
        """Publish anything again that ever was, as it was or corrected, perhaps through another partition."""
        known = [version for some in self.versions.values() for _, version in some]
        one = data.draw(st.sampled_from(known))
        minute = (one.measured_at - T0) // MINUTE
        value, revision = (one.value + 1, one.revision + 1) if is_correction else (one.value, one.revision)
        self.publish_readings(key, [(one.meter_id, minute, value, revision)])

    @rule(seconds=st.sampled_from([1, 59, 60, 240, 301, 1_800]))
    def time_passes(self, seconds: int) -> None:
        """Move the broker's clock on, and tick every partition."""
        self.clock += timedelta(seconds=seconds)
        for key in PARTITIONS:
            self.append(key, None, 0)

    @rule(number=st.integers(0, 1), count=st.integers(1, 5), answer_is_lost=st.booleans())
    def poll(self, number: int, count: int, answer_is_lost: bool) -> None:
        """Store the next records of the partitions that a consumer believes to own."""
        self.run(self.store_next(self.consumers[number], count, answer_is_lost))

    @rule(number=st.integers(0, 1), count=st.integers(1, 5), is_stored=st.booleans())
    def crash(self, number: int, count: int, is_stored: bool) -> None:
        """Let a consumer die with a batch judged, or just stored; it comes back with nothing but the table."""
        consumer = self.consumers[number]
        owned = tuple(consumer.positions)
        self.run(self.store_next(consumer, count, False) if is_stored else self.judged(consumer, count))
        self.consumers[number] = Consumer(self.world, consumer.name)
        self.run(self.assign(number, owned))

    @rule(number=st.integers(0, 1), some=st.sets(st.sampled_from(PARTITIONS), min_size=1))
    def rebalance(self, number: int, some: set[Partition]) -> None:
        """Give partitions to a consumer; the one before does not know yet, and goes on as a zombie."""
        self.run(self.assign(number, tuple(sorted(some))))

    @rule(meter=st.sampled_from([1, 2, 5]), units_per_pulse=st.sampled_from(["0.002", "0.5", "3"]))
    def edit_meter(self, meter: int, units_per_pulse: str) -> None:
        """Let a meter's pulses count for something else from now on, which is the next minute."""
        self.run(self.edits.make(self.world.connection, meter, Decimal(units_per_pulse), self.clock))

    @rule(resolution=st.sampled_from(RESOLUTIONS_MINUTES), number=st.integers(0, 1))
    def close_one(self, resolution: int, number: int) -> None:
        self.run(self.close(resolution, self.workers[number]))

    @rule(resolution=st.sampled_from(RESOLUTIONS_MINUTES))
    def close_twice_at_once(self, resolution: int) -> None:
        """Let both workers close the same buckets, as while these are given from one to the other."""

        async def both() -> None:
            await asyncio.gather(*(self.close(resolution, worker) for worker in self.workers))

        self.run(both())

    @rule(
        resolution=st.sampled_from(RESOLUTIONS_MINUTES),
        number=st.integers(0, 1),
        point=st.sampled_from(CRASH_POINTS),
        is_edited=st.booleans(),
    )
    def die_while_closing(self, resolution: int, number: int, point: str, is_edited: bool) -> None:
        """Kill a worker in the middle of closing, perhaps edit a meter then, and let the other one go on."""
        # Else there is seldom anything to close, and who has nothing to do does not die of it.
        self.time_passes(301)
        self.run(self.assign(0, PARTITIONS))
        self.run(self.store_next(self.consumers[0], 10_000, False))
        try:
            with dying_at(point):
                self.run(self.close(resolution, self.workers[number]))
        except Died:
            self.world.seen[f"died at {point}"] += 1
        self.workers[number] = new_worker(self.world.pool, BUCKETS)
        self.run(self.check_windows())
        if is_edited:
            self.edit_meter(1, "3")
        self.run(self.close(resolution, self.workers[1 - number]))

    @rule()
    def store_and_close_everything(self) -> None:
        self.run(self.assign(0, PARTITIONS))
        self.run(self.store_next(self.consumers[0], 10_000, False))
        for resolution in RESOLUTIONS_MINUTES:
            self.run(self.close(resolution, self.workers[0]))

    def teardown(self) -> None:
        """End every example with one of each that the test is about, so that none is left to chance."""
        if not self.log[PARTITIONS[0]]:
            return
        newest = (self.clock - T0) // MINUTE - 1
        self.publish_readings(PARTITIONS[0], [(1, newest, 7, 0), (5, newest, 7, 0), (9, newest, 7, 0)])
        for number in range(2):
            self.run(self.assign(number, PARTITIONS))
        self.run(self.store_next(self.consumers[0], 10_000, False))
        self.edit_meter(1, "0.5")
        self.time_passes(1_800)
        self.publish_readings(PARTITIONS[0], [(2, newest, 7, 0), (5, newest + 20, 9, 0), (1, newest + 20, 3, 0)])
        self.time_passes(1_800)
        for number, point in enumerate(CRASH_POINTS):
            self.die_while_closing(RESOLUTIONS_MINUTES[number], number % 2, point, is_edited=True)
        self.store_and_close_everything()
        self.every_reading_is_a_version_or_refused()
        self.closed_windows_are_what_the_whole_log_says()

    async def assign(self, number: int, some: tuple[Partition, ...]) -> None:
        consumer = self.consumers[number]
        consumer.positions.update(await consumer.store.claim(dict.fromkeys(some, 0), consumer.name))

    async def judged(self, consumer: Consumer, count: int) -> Batch | None:
        verdicts = []
        for key, position in sorted(consumer.positions.items()):
            records = self.log[key][position.next_offset : position.next_offset + count]
            if records:
                polled = PartitionBatch(*key, records)
                verdicts.append(await consumer.builder.judge(polled, position, self.world.registry))
        return batch_of(verdicts) if verdicts else None

    async def store_next(self, consumer: Consumer, count: int, answer_is_lost: bool) -> None:
        batch = await self.judged(consumer, count)
        if batch is None:
            return
        for _ in range(2 if answer_is_lost else 1):
            try:
                await consumer.store.store(batch, await encode_plan(consumer.marks.plan(batch.versions)))
            except Superseded:
                # Another owner has moved at least one of them: as after a rebalance, it starts from the table.
                self.world.seen["superseded"] += 1
                consumer.positions = {}
                return
        for move in batch.advances:
            consumer.positions[move.topic, move.partition] = move.position

    async def close(self, resolution: int, worker: WindowStore) -> None:
        await close(worker, resolution, self.clock, PARTITIONS)

    @invariant()
    def every_reading_is_a_version_or_refused(self) -> None:
        if self.log[PARTITIONS[0]]:
            self.run(self.check_ingest())

    async def check_ingest(self) -> None:
        connection = self.world.connection
        rows = await connection.fetch(
            "SELECT topic, partition, next_offset, stored_count, refused_count FROM ingest_progress"
        )
        consumed = dict.fromkeys(PARTITIONS, 0) | {(row[0], row[1]): row[2] for row in rows}
        for topic, partition, next_offset, stored, refused in map(tuple, rows):
            key = (topic, partition)
            assert stored == sum(offset < next_offset for offset, _ in self.versions[key])
            assert refused == sum(offset < next_offset for offset in self.refused[key])
            assert stored + refused == sum(self.readings_in[key][:next_offset])
        found = await connection.fetch("SELECT topic, partition, source_offset FROM rejected_reading")
        refusals = [(*key, at) for key, some in self.refused.items() for at in some if at < consumed[key]]
        assert sorted(tuple(row) for row in found) == sorted(refusals)
        self.world.seen["refused"] += bool(refusals)
        versions = [one for key, some in self.versions.items() for at, one in some if at < consumed[key]]
        await assert_versions(connection, versions, [self.clock - DEFAULT_GRACE])

    @invariant()
    def closed_windows_are_what_the_whole_log_says(self) -> None:
        if self.log[PARTITIONS[0]]:
            self.run(self.check_windows())

    async def check_windows(self) -> None:
        # All that was ever published, stored yet or not: nothing that belongs to a closed window may still be missing.
        versions = [version for some in self.versions.values() for _, version in some]
        frontiers: dict[int, dict[int, datetime]] = defaultdict(dict)
        for key, until in (await self.workers[0].frontiers()).items():
            frontiers[key.resolution_minutes][key.bucket] = until
        found = await self.world.connection.fetch(f"SELECT {', '.join(Row._fields)} FROM measurement ORDER BY 1, 2, 3")
        told = await self.world.connection.fetch(f"SELECT {', '.join(TellingEvent._fields)} FROM meter_event")
        rows, events = [], []
        for resolution, ends in sorted(frontiers.items()):
            expected_rows, expected_events = expected(versions, resolution, DEFAULT_GRACE, UTILITIES, 1, MODULI)
            rows += [
                self.edits.converted(row) for row in expected_rows if row.window_start < ends[row.meter_id % BUCKETS]
            ]
            events += [event for event in expected_events if event.window_start < ends[event.meter_id % BUCKETS]]
        assert [Row(*row) for row in found] == rows
        assert sorted((*row[:4], json.loads(row[4])) for row in map(tuple, told)) == sorted(map(tuple, events))
        now = {row[:3]: row for row in rows}
        assert self.closed.items() <= now.items(), "a closed window has changed"
        self.closed = now
        self.world.seen["rows"] += len(rows)
        self.world.seen["rows of edited meters"] += sum(self.edits.is_edited(row) for row in rows)
        self.world.seen["rows of registers"] += sum(row.register_end is not None for row in rows)
        self.world.seen["late"] += sum(one.arrived_at > one.measured_at + MINUTE + DEFAULT_GRACE for one in versions)


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def prepare(url: str) -> None:
    await seed_meters(url, UTILITIES, moduli=MODULI)
    await execute(url, "INSERT INTO device VALUES ('BR-1', 1, 'bridge', 1)")
    await execute(url, "INSERT INTO bridge_attachment SELECT 'BR-1', meter_id, '-infinity', 1, true FROM meter")


@pytest.fixture
def world(databases: Databases) -> Iterator[World]:
    with databases.fresh() as url, asyncio.Runner() as runner:
        runner.run(prepare(url))
        pool = runner.run(connect_pool(url, max_size=4))
        made = World(url, runner, pool, runner.run(registry_of(url)))
        WORLD.append(made)
        try:
            yield made
        finally:
            WORLD.clear()
            runner.run(made.connection.close())
            pool.terminate()


def test_in_any_order_of_events_the_equations_hold_after_each(world: World) -> None:
    run_state_machine_as_test(
        Platform,
        settings=hypothesis.settings(
            max_examples=35,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
    print(world.seen)
    deaths = [f"died at {point}" for point in CRASH_POINTS]
    wanted = ["rows", "rows of registers", "rows of edited meters", "refused", "superseded", "late", *deaths]
    assert all(world.seen[what] for what in wanted), world.seen
