"""Days of readings are made ahead and dropped by the clock of arrivals, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import asyncpg
import numpy as np
import pytest
import structlog

from services.core.columns import Columns
from services.core.readings import ReadingVersion
from services.ingest import day_partitions as day_partitions_module
from services.ingest.batch import Advance, Batch, Position
from services.ingest.day_partitions import DayKeeper, day_partitions
from services.ingest.store import IngestStore
from services.ingest.write_plan import WritePlan, encode_plan, merge_everything
from services.platform.errors import Unavailable
from services.platform.partitions import create_partitions
from services.platform.postgres import Pool, connect_pool
from tests.support.polling import eventually_async

TOPIC = "readings.logger"
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
KEEP = timedelta(days=99)
OLDEST_KEPT = date(2026, 8, 13)
PARTITIONS = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = $1::text::regclass ORDER BY relname
"""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    made = await connect_pool(database_url, max_size=3)
    yield made
    made.terminate()


async def days_of(pool: Pool, table: str) -> list[str]:
    return [row["relname"].removeprefix(f"{table}_") for row in await pool.fetch(PARTITIONS, table)]


async def some_days(pool: Pool) -> None:
    """Make the days around what is kept, with a clock of arrivals at NOW on two partitions."""
    for days in range(-3, 2):
        await create_partitions(pool, day_partitions(OLDEST_KEPT + timedelta(days=days)))
    await pool.execute(
        "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, epoch, owner) "
        "VALUES ($1, 0, 1, $2, 1, 'me'), ($1, 1, 1, $3, 1, 'me')",
        *(TOPIC, NOW, NOW + timedelta(hours=20)),
    )


async def windows_closed(pool: Pool, until: datetime) -> None:
    await pool.execute(
        "INSERT INTO window_closed SELECT resolution, $1, $1 FROM unnest(ARRAY[1, 5, 15, 60]) resolution "
        "ON CONFLICT (resolution_minutes) DO UPDATE SET closed_until = $1",
        until,
    )


async def test_days_are_made_ahead_and_dropped_when_all_have_left_them(pool: Pool) -> None:
    await some_days(pool)
    keeper = DayKeeper(pool, [TOPIC], KEEP)
    await keeper.look()
    ahead = ["20261121", "20261122", "20261123"]
    kept = ["20260810", "20260811", "20260812", "20260813", "20260814"]
    assert await days_of(pool, "reading") == kept + ahead, "no window was closed yet: nothing is old"
    await windows_closed(pool, NOW - timedelta(days=1))
    await keeper.look()
    assert await days_of(pool, "reading") == kept[2:] + ahead, "windowing is a day behind"
    await windows_closed(pool, NOW)
    await keeper.look()
    for table in ("reading", "reading_superseded"):
        assert await days_of(pool, table) == kept[3:] + ahead
    await pool.execute("INSERT INTO ingest_progress VALUES ($1, 2, 0, NULL, NULL, 1, 'me')", TOPIC)
    await pool.execute("UPDATE ingest_progress SET watermark = watermark + '1 day'::interval")
    await windows_closed(pool, NOW + timedelta(days=1))
    await keeper.look()
    assert kept[3] in await days_of(pool, "reading"), "a partition from which nothing is known yet holds everything"


async def test_dropping_never_waits_long_and_is_tried_again(pool: Pool, database_url: str) -> None:
    await some_days(pool)
    await windows_closed(pool, NOW)
    keeper = DayKeeper(pool, [TOPIC], KEEP)
    reader = await asyncpg.connect(database_url)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT count(*) FROM reading")
            with pytest.raises(Unavailable, match="LockNotAvailable"):
                await keeper.look()
            assert "20260810" in await days_of(pool, "reading")
    finally:
        await reader.close()
    await keeper.look()
    assert (await days_of(pool, "reading"))[0] == "20260813"


@pytest.mark.parametrize("is_new", [True, False], ids=["by COPY", "by the merge"])
async def test_a_reading_for_a_day_that_was_dropped_gets_a_new_one(pool: Pool, is_new: bool) -> None:
    store = IngestStore(pool)
    position = (await store.claim({(TOPIC, 0): 0}, "me"))[TOPIC, 0]
    for round_ in range(2):
        version = ReadingVersion(NOW, NOW, round_, position.next_offset, 1, 0, 0, 0, 1, 1, False)
        versions = Columns.of_versions([version])
        after = Position(position.epoch, position.next_offset + 1, NOW, NOW)
        batch = Batch(versions, [], [Advance(TOPIC, 0, position.epoch, position.next_offset, after, 1, 0)])
        nothing = versions.take(np.array([], dtype=int))
        plan = WritePlan([(NOW.date(), versions)], nothing) if is_new else merge_everything(versions)
        await store.store(batch, await encode_plan(plan))
        assert await pool.fetchval("SELECT array_agg(value) FROM reading") == [round_]
        position = after
        await pool.execute("DROP TABLE reading_20261120, reading_superseded_20261120")


async def test_nobody_waits_for_a_day_that_was_made_ahead(pool: Pool, database_url: str) -> None:
    """Whatever is done to the tables then, an ANALYZE, say, which shuts out all that changes them."""
    await some_days(pool)
    known_days: set[date] = set()
    await DayKeeper(pool, [TOPIC], KEEP, known_days=known_days).look()
    store = IngestStore(pool, known_days=known_days)
    position = (await store.claim({(TOPIC, 0): 1}, "me"))[TOPIC, 0]
    tomorrow = NOW + timedelta(days=1)
    versions = Columns.of_versions(
        [ReadingVersion(tomorrow, tomorrow, 5, position.next_offset, 1, 0, 0, 0, 1, 1, False)]
    )
    after = Position(position.epoch, position.next_offset + 1, tomorrow, tomorrow)
    batch = Batch(versions, [], [Advance(TOPIC, 0, position.epoch, position.next_offset, after, 1, 0)])
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE reading, reading_superseded IN SHARE UPDATE EXCLUSIVE MODE")
            async with asyncio.timeout(10):
                await store.store(batch, await encode_plan(merge_everything(versions)))
    finally:
        await other.close()
    assert await pool.fetchval("SELECT array_agg(value) FROM reading") == [5]


async def test_days_are_kept_again_once_the_database_is_mended(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a table's name or a right was taken away: keeping the days must not end for good."""
    monkeypatch.setattr(day_partitions_module, "AGAIN_SECONDS", 0.05)
    await some_days(pool)
    await pool.execute("ALTER TABLE window_closed RENAME TO not_here")
    stopping = asyncio.Event()
    with structlog.testing.capture_logs() as events:
        keeping = asyncio.create_task(DayKeeper(pool, [TOPIC], KEEP).run(stopping))
        await eventually_async(lambda: keeping.done() or len(events) > 1, 10, because="it says what is wrong")
    assert {event["event"] for event in events} == {"days_not_kept"}
    await pool.execute("ALTER TABLE not_here RENAME TO window_closed")

    async def is_made() -> bool:
        return "20261122" in await days_of(pool, "reading")

    await eventually_async(is_made, 10, because="the days are made ahead")
    stopping.set()
    await keeping
