"""Closing on the real PostgreSQL in ranges, by several workers, over gaps: each window once, whatever the way."""

import asyncio
import random
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES
from services.platform.errors import OperatorNeeded
from services.platform.postgres import Pool, transaction
from services.windowing.announcements import BucketKey
from services.windowing.store import WindowStore
from tests.support.closing import (
    CLOSED_TABLES,
    MINUTE,
    T0,
    UTILITIES,
    assert_closed_as_expected,
    begin,
    close_all,
    closings,
    expected_rows,
    many_versions,
    seed_meters,
    store_of,
    store_progress,
    store_versions,
    stored_rows,
    version,
)

HOUR = 60 * MINUTE
DAY = 24 * HOUR


async def advance_alone(pool: Pool, store: WindowStore, key: BucketKey, until: datetime) -> datetime | None:
    """Advance one bucket while somebody else holds all others of its resolution."""
    async with transaction(pool) as connection:
        await connection.execute(
            "SELECT FROM window_frontier WHERE resolution_minutes = $1 AND bucket <> $2 FOR UPDATE", *key
        )
        return await store.advance(key, until)


async def test_in_one_go_in_chunks_or_window_by_window_gives_the_same_rows_and_hashes(
    pool: Pool, database_url: str
) -> None:
    versions = many_versions(7)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    until = T0 + 3 * HOUR

    async def result() -> tuple[Any, Any]:
        rows = [await stored_rows(database_url, resolution) for resolution in RESOLUTIONS_MINUTES]
        found = rows, await closings(pool)
        async with transaction(pool) as connection:
            await connection.execute(f"TRUNCATE {CLOSED_TABLES}")
        return found

    store = await begin(pool, database_url, until + 2 * HOUR)
    assert await close_all(store, until) == 0
    at_once = await result()
    store = await begin(pool, database_url, until + 2 * HOUR, statement_readings=10)
    assert await close_all(store, until) > 20
    in_chunks = await result()
    store = await begin(pool, database_url, until + 2 * HOUR)
    for key in sorted(store.keys, key=lambda key: (key.bucket, key.resolution_minutes)):
        step = T0
        while step < until:
            step += key.resolution_minutes * MINUTE
            assert await advance_alone(pool, store, key, step) == step
    one_by_one = await result()
    store = await begin(pool, database_url, until + 2 * HOUR)
    for minute in range(0, 181, 7):  # as a watermark that moves on would announce it
        for key in store.keys:
            await store.advance(key, T0 + minute * MINUTE)
    await close_all(store, until)
    assert at_once == in_chunks == one_by_one == await result()
    assert len(at_once[1]) > 300


async def test_workers_at_once_close_each_window_once(pool: Pool, database_url: str) -> None:
    versions = many_versions(3)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    until = T0 + 3 * HOUR
    stores = [await begin(pool, database_url, until + 2 * HOUR, statement_readings=20) for _ in range(4)]

    async def work(store: WindowStore, seed: int) -> list[datetime]:
        rng = random.Random(seed)
        open_keys = sorted(store.keys)
        moved = []
        while open_keys:
            key = rng.choice(open_keys)
            if await store.advance(key, until) == until:
                open_keys.remove(key)
            reached = await store.move_closed(key.resolution_minutes)
            if reached is not None:
                moved.append(reached)
        return moved

    moves = await asyncio.gather(*(work(store, seed) for seed, store in enumerate(stores)))
    await assert_closed_as_expected(database_url, versions)
    frontiers = await stores[0].frontiers()
    assert set(frontiers.values()) == {until}
    # Every step of a resolution has one winner, who announces it.
    assert sum(moved.count(until) for moved in moves) == len(RESOLUTIONS_MINUTES)


async def test_nothing_closes_before_the_tables_say_so(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, [version(1, T0, 1)])
    store = await begin(pool, database_url, T0 + 6 * MINUTE)
    key = BucketKey(1, 1)
    assert await store.advance(key, T0 + HOUR) == T0
    await store_progress(database_url, T0 + 6 * MINUTE + timedelta(microseconds=1), first_arrival=T0)
    assert await store.advance(key, T0 + HOUR) == T0 + MINUTE
    await store_progress(database_url, None, first_arrival=T0, partition=1)
    await store_progress(database_url, T0 + 5 * HOUR, first_arrival=T0)
    assert await store.advance(key, T0 + HOUR) == T0 + MINUTE


async def test_nothing_happens_before_the_opening_and_a_second_opening_changes_nothing(
    pool: Pool, database_url: str
) -> None:
    store = store_of(pool)
    assert await store.advance(BucketKey(1, 0), T0) is None
    assert await store.frontiers() == {}
    for first in (T0, T0 + HOUR):
        await asyncio.gather(*(store.open(dict.fromkeys(RESOLUTIONS_MINUTES, first)) for _ in range(3)))
    assert await store.frontiers() == dict.fromkeys(store.keys, T0)


async def test_another_number_of_buckets_needs_the_operator(pool: Pool, database_url: str) -> None:
    await store_of(pool).open(dict.fromkeys(RESOLUTIONS_MINUTES, T0))
    with pytest.raises(OperatorNeeded, match="closed in 8 buckets, the settings say 16; set METERPOST_BUCKETS to 8"):
        await store_of(pool, buckets=16).frontiers()


async def test_gaps_of_years_close_in_a_moment(pool: Pool, database_url: str) -> None:
    """Twenty years, and readings in three hours of them."""
    await seed_meters(database_url, UTILITIES)
    starts = [T0, T0 + 4000 * DAY, T0 + 7300 * DAY]
    versions = [version(1, start + minute * MINUTE, 1) for start in starts for minute in range(60)]
    await store_versions(database_url, versions)
    until = T0 + 7301 * DAY
    store = await begin(pool, database_url, until + HOUR)
    started = time.monotonic()
    await close_all(store, until)
    assert time.monotonic() - started < 15
    await assert_closed_as_expected(database_url, versions)
    assert set((await store.frontiers()).values()) == {until}


async def test_three_years_of_hourly_readings_close_in_seconds(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, UTILITIES)
    versions = [version(1, T0 + hour * HOUR, hour, interval_minutes=60) for hour in range(980 * 24)]
    await store_versions(database_url, versions)
    until = T0 + 980 * DAY
    store = await begin(pool, database_url, until + HOUR)
    started = time.monotonic()
    await close_all(store, until)
    assert time.monotonic() - started < 60
    assert await stored_rows(database_url, 60) == expected_rows(versions, 60, DEFAULT_GRACE, UTILITIES)
    async with transaction(pool) as connection:
        fine = await connection.fetchval(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^measurement_(1|5|15)m_'"
        )
    assert fine == 0  # no empty partitions for resolutions that have no rows
