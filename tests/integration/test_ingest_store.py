"""The store's one transaction a batch: repeated after a commit whose answer was lost, and beside writers that froze."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from services.core.columns import Columns
from services.core.readings import ReadingVersion
from services.ingest.batch import Advance, Batch, Position
from services.ingest.store import IngestStore
from services.ingest.write_plan import EncodedPlan, WritePlan, encode_plan
from services.platform.errors import Superseded, Unavailable
from services.platform.kafka import Partition
from services.platform.metrics import INGEST_MERGED_BATCHES
from services.platform.postgres import Pool
from tests.support.polling import eventually_async

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PARTITION: Partition = ("readings.logger", 0)
ZOMBIE_AFTER = timedelta(milliseconds=300)


async def taken_for_new(position: Position, meter_ids: list[int]) -> tuple[Batch, EncodedPlan]:
    """Return a batch whose readings are all sent straight into their day, one record each."""
    first, arrival = position.next_offset, T0 + MINUTE
    versions = Columns.of_versions(
        [
            ReadingVersion(T0, arrival, 7, first + place, meter_id, 0, 0, 0, 1, 1, False)
            for place, meter_id in enumerate(meter_ids)
        ]
    )
    after = Position(position.epoch, first + len(meter_ids), arrival, arrival)
    batch = Batch(versions, [], [Advance(*PARTITION, position.epoch, first, after, len(meter_ids), 0)])
    return batch, await encode_plan(WritePlan([(T0.date(), versions)], versions.take(slice(0, 0))))


async def test_a_commit_whose_answer_was_lost_is_recognised_whatever_way_its_readings_took(pool: Pool) -> None:
    """Its rows are met in the COPY already, before its progress is looked at."""
    store = IngestStore(pool)
    position = (await store.claim({PARTITION: 0}, "me"))[PARTITION]
    batch, plan = await taken_for_new(position, [1, 2])
    merged = INGEST_MERGED_BATCHES._value.get()
    await store.store(batch, plan)
    await store.store(batch, plan)
    assert await pool.fetchval("SELECT count(*) FROM reading") == 2
    assert await pool.fetchval("SELECT count(*) FROM reading_superseded") == 0
    assert await pool.fetchval("SELECT stored_count FROM ingest_progress") == 2
    assert INGEST_MERGED_BATCHES._value.get() == merged, "nothing was merged"
    [move] = batch.advances
    await store.store(*await taken_for_new(move.position, [3]))
    with pytest.raises(Superseded):
        await store.store(batch, plan)


async def test_a_writer_that_froze_is_ended_when_it_is_met_in_the_merge_too(pool: Pool, database_url: str) -> None:
    """The COPY ends at a reading that is stored already; the merge waits behind the reading that the zombie holds."""
    store = IngestStore(pool, zombie_after=ZOMBIE_AFTER)
    position = (await store.claim({PARTITION: 0}, "me"))[PARTITION]
    batch, plan = await taken_for_new(position, [1])
    await store.store(batch, plan)
    [move] = batch.advances
    zombie = await asyncpg.connect(database_url)
    try:
        frozen = zombie.transaction()
        await frozen.start()
        await zombie.execute("LOCK TABLE ingest_progress IN ROW SHARE MODE")
        await zombie.execute(
            "INSERT INTO reading VALUES ($1, $1, 1, 5, 2, 0, 1, 0, 1, 1, false)", T0
        )  # meter 2, from partition 1
        both, plan_of_both = await taken_for_new(move.position, [1, 2])

        async def stored() -> bool:
            try:
                await store.store(both, plan_of_both)
            except Unavailable:
                return False
            return True

        await eventually_async(stored, 5, because="the batch is stored in spite of the zombie")
        assert zombie.is_closed()
    finally:
        zombie.terminate()
    assert await pool.fetchval("SELECT array_agg(source_offset ORDER BY meter_id) FROM reading") == [1, 2]
    assert await pool.fetchval("SELECT count(*) FROM reading_superseded") == 1


async def test_a_day_that_is_dropped_under_a_repeated_commit_is_no_reason_to_store_it_twice(pool: Pool) -> None:
    store = IngestStore(pool)
    position = (await store.claim({PARTITION: 0}, "me"))[PARTITION]
    batch, plan = await taken_for_new(position, [1])
    await store.store(batch, plan)
    await pool.execute("DROP TABLE reading_20261120, reading_superseded_20261120")
    await store.store(batch, plan)
    assert await pool.fetchval("SELECT stored_count FROM ingest_progress") == 1
    assert await pool.fetchval("SELECT count(*) FROM reading") == 0


async def test_one_turn_that_fails_takes_the_next_batch_with_it(pool: Pool) -> None:
    store = IngestStore(pool)
    position = (await store.claim({PARTITION: 0}, "me"))[PARTITION]

    async def the_one_before_was_refused() -> None:
        await asyncio.sleep(0)
        raise Superseded("somebody else's")

    with pytest.raises(Superseded, match="somebody else's"):
        await store.store(*await taken_for_new(position, [1]), the_one_before_was_refused)
    assert await pool.fetchval("SELECT count(*) FROM reading") == 0
    assert await pool.fetchval("SELECT next_offset FROM ingest_progress") == 0
