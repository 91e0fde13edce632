"""Partitions that are made while others read the parent: nobody may go on without them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from services.ingest.day_partitions import DayKeeper, day_partitions, partition_name
from services.platform import partitions
from services.platform.partitions import PLANNING_TIME, create_partitions
from services.platform.postgres import Pool, transaction
from services.platform.topics import READINGS_LOGGER
from services.windowing.retention import MeasurementKeeper
from tests.support.polling import eventually_async

FIRST = date(2020, 1, 1)
BEFORE = 300
"""The longer the list of partitions, the longer it takes to read it, and the likelier another is attached meanwhile."""
ROUNDS = 40
AT_ONCE = 6
READERS = 12
COMMIT_SECONDS = 0.012
"""About how long the commit of new partitions takes."""


def start_of(day: int) -> datetime:
    return datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(days=day)


async def make(pool: Pool, first: int, end: int) -> None:
    days = [FIRST + timedelta(days=day) for day in range(first, end)]
    await create_partitions(pool, [part for day in days for part in day_partitions(day)])


async def store_one(pool: Pool, day: int) -> None:
    table = partition_name("reading", FIRST + timedelta(days=day))
    await pool.execute(
        f"INSERT INTO {table} (measured_at, arrived_at, value, source_offset, meter_id, revision, source_partition, "
        "source_place, interval_minutes, source_topic, is_register) VALUES ($1, $1, 1, 1, 1, 0, 0, 0, 60, 1, false)",
        start_of(day),
    )


@pytest.fixture
async def readers(database_url: str) -> AsyncIterator[list["asyncpg.Connection[asyncpg.Record]"]]:
    """Give sessions that live as long as the test."""
    made = [await asyncpg.connect(database_url) for _number in range(READERS)]
    yield made
    for connection in made:
        await connection.close()


async def test_whoever_reads_while_partitions_are_made_finds_their_rows(
    pool: Pool, readers: list["asyncpg.Connection[asyncpg.Record]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that reads the list of partitions just then must not keep the one without the new ones."""
    for first in range(0, BEFORE, 100):
        await make(pool, first, first + 100)
    attach, reading = partitions._attach, list[asyncio.Task[int]]()

    async def count(reader: "asyncpg.Connection[asyncpg.Record]", first: int, delay_s: float = 0) -> int:
        await asyncio.sleep(delay_s)
        # Without parameters, so that it is planned each time, which the list is needed for.
        found: int = await reader.fetchval(
            f"SELECT count(*) FROM reading WHERE measured_at >= '{start_of(first)}' "
            f"AND measured_at < '{start_of(first + 2 * AT_ONCE)}'"
        )
        return found

    for number in range(ROUNDS):
        begin = BEFORE + number * 2 * AT_ONCE
        # A list that is to be read anew …
        await make(pool, begin, begin + AT_ONCE)

        async def attach_while_all_read(*arguments: Any, begin: int = begin) -> None:
            await attach(*arguments)
            reading.extend(
                asyncio.create_task(count(reader, begin, place * COMMIT_SECONDS / READERS))
                for place, reader in enumerate(readers)
            )

        # … and is read around the very moment at which further partitions are committed.
        with monkeypatch.context() as patch:
            patch.setattr(partitions, "_attach", attach_while_all_read)
            await make(pool, begin + AT_ONCE, begin + 2 * AT_ONCE)
        await asyncio.gather(*reading)
        reading.clear()
        for day in range(begin, begin + 2 * AT_ONCE):
            await store_one(pool, day)
        assert [await count(reader, begin) for reader in readers] == [2 * AT_ONCE] * READERS, number


@pytest.mark.parametrize("tracked", ["on", "off"])
async def test_partitions_are_told_of_only_when_nobody_plans_without_them(
    pool: Pool, readers: list["asyncpg.Connection[asyncpg.Record]"], tracked: str
) -> None:
    """A session of which nobody sees what it does, as of another user, may be planning, too."""
    await make(pool, 0, 1)
    one, looking = readers[0], readers[1]
    await one.execute(f"SET track_activities = {tracked}")
    reading = asyncio.create_task(one.execute("SELECT count(*), pg_sleep(0.7) FROM reading"))

    async def is_reading() -> bool:
        return bool(await looking.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')"))

    await eventually_async(is_reading)
    await make(pool, 1, 2)
    assert reading.done(), "a statement that had just begun might still have been planning"
    await reading
    is_told_afterwards = """
        SELECT a.xmin::text::bigint > i.xmin::text::bigint FROM pg_attribute a
        JOIN pg_inherits i ON i.inhparent = a.attrelid AND i.inhrelid = $1::text::regclass
        WHERE a.attrelid = 'reading'::regclass AND a.attnum = 1
    """
    assert await looking.fetchval(is_told_afterwards, partition_name("reading", FIRST + timedelta(days=1)))


async def test_a_statement_that_takes_long_keeps_nobody_waiting(
    pool: Pool, readers: list["asyncpg.Connection[asyncpg.Record]"]
) -> None:
    """It has planned long ago. Neither does a transaction in which nothing is under way."""
    await make(pool, 0, 1)
    long, idle = readers[0], readers[1]
    async with idle.transaction():
        await idle.fetchval("SELECT count(*) FROM reading")
        reading = asyncio.create_task(long.execute("SELECT count(*), pg_sleep(30) FROM reading"))
        async with asyncio.timeout(PLANNING_TIME.total_seconds() + 5):
            await make(pool, 1, 2)
        async with asyncio.timeout(PLANNING_TIME.total_seconds()):
            await make(pool, 2, 3)
        assert not reading.done()
        async with transaction(pool) as connection:
            await connection.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
                "AND datname = current_database()"
            )
        with pytest.raises(asyncpg.QueryCanceledError):
            await reading


async def test_those_that_make_days_ahead_tell_of_them_again_each_time_they_look(pool: Pool) -> None:
    """A session that was frozen while it planned, for longer than anybody waits, hears of them before they are used."""
    now = start_of(10)
    await pool.execute(
        "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, epoch, owner) "
        "VALUES ($1, 0, 1, $2, 1, 'me')",
        READINGS_LOGGER,
        now,
    )
    await pool.execute("INSERT INTO window_closed VALUES (15, $1, $1)", now)
    keepers: dict[str, DayKeeper | MeasurementKeeper] = {
        "reading": DayKeeper(pool, [READINGS_LOGGER], timedelta(days=99)),
        "measurement_15m": MeasurementKeeper(pool, {15: None}),
    }
    for parent, keeper in keepers.items():

        async def told_at(parent: str = parent) -> int:
            found: int = await pool.fetchval(
                "SELECT xmin::text::bigint FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum = 1", parent
            )
            return found

        await keeper.look()
        first = await told_at()
        made = await pool.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = $1::text::regclass", parent)
        await keeper.look()
        assert await told_at() > first, parent
        still = await pool.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = $1::text::regclass", parent)
        assert made == still > 0
