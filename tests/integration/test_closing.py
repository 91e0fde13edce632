"""Closing on the real PostgreSQL: which readings are in a window, what they amount to, and that it happens once."""

from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.core.conversion import Conversion, Utility, convert
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES, cut_off
from services.platform.postgres import Pool, connect_pool, transaction
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    Row,
    assert_closed_as_expected,
    begin,
    canonical_sha256,
    close_all,
    closings,
    configure,
    many_versions,
    seed_meters,
    store_versions,
    stored_rows,
    version,
)

HOUR = 60 * MINUTE


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_window_holds_the_newest_versions_as_known_at_its_cut_off(
    pool: Pool, database_url: str, seed: int
) -> None:
    versions = many_versions(seed)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    until = T0 + 3 * HOUR
    store = await begin(pool, database_url, until + 2 * HOUR)
    await close_all(store, until)
    await assert_closed_as_expected(database_url, versions)
    stored = [row for resolution in RESOLUTIONS_MINUTES for row in await stored_rows(database_url, resolution)]
    by_window: dict[tuple[int, datetime, int], list[Row]] = defaultdict(list)
    for row in stored:
        by_window[row.resolution_minutes, row.window_start, row.meter_id % 8].append(row)
    recorded = await closings(pool)
    assert len(recorded) == len(by_window)
    for closing in recorded:
        rows = by_window[closing["resolution_minutes"], closing["window_start"], closing["bucket"]]
        assert closing["row_count"] == len(rows) > 0
        assert closing["sha256"] == canonical_sha256(rows)
        assert closing["cut_off"] == cut_off(closing["window_start"], closing["resolution_minutes"], DEFAULT_GRACE)
        assert (closing["catalog_revision"], closing["offsets"]) == (1, '{"readings.logger/0": 17}')


@pytest.mark.parametrize(
    ("microseconds", "in_minute", "in_hour"),
    [(-1, True, True), (0, True, True), (1, False, True), (59 * 60_000_000, False, True), (3540_000_001, False, False)],
)
async def test_arrival_exactly_at_the_cut_off_is_in_time(
    pool: Pool, database_url: str, microseconds: int, in_minute: bool, in_hour: bool
) -> None:
    """A reading may be late for its minute and in time for its hour."""
    await seed_meters(database_url, UTILITIES)
    arrived = cut_off(T0, 1, DEFAULT_GRACE) + timedelta(microseconds=microseconds)
    await store_versions(database_url, [version(1, T0, 7, arrived_at=arrived)])
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    assert bool(await stored_rows(database_url, 1)) is in_minute
    assert bool(await stored_rows(database_url, 60)) is in_hour


async def test_a_correction_after_the_cut_off_leaves_the_version_that_was_known(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, UTILITIES)
    late = T0 + 3 * HOUR
    versions = [
        version(1, T0, 1),
        version(1, T0, 2, revision=1),
        version(1, T0, 99, revision=2, arrived_at=late),
        version(2, T0, 5, revision=3),
        version(2, T0, 6, revision=1, arrived_at=late),  # outranked: the newest is older by arrival
        version(3, T0, 9, arrived_at=late),
    ]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    assert [(row.meter_id, row.pulses) for row in await stored_rows(database_url, 60)] == [(1, 2), (2, 5)]
    await assert_closed_as_expected(database_url, versions)


async def test_the_interval_is_judged_after_the_version_is_chosen(pool: Pool, database_url: str) -> None:
    """A correction that lengthens or shortens the interval counts as what it is, not as a reason to look further."""
    await seed_meters(database_url, UTILITIES)
    versions = [
        version(1, T0, 1),
        version(1, T0, 30, revision=1, interval_minutes=30, arrived_at=T0 + MINUTE),
        version(2, T0, 30, interval_minutes=30, arrived_at=T0 + MINUTE),
        version(2, T0, 1, revision=1),
        # The hour's version is one of 30 minutes; when the 5 minutes closed, one of 5 minutes was known.
        version(3, T0, 5, interval_minutes=5),
        version(3, T0, 30, revision=1, interval_minutes=30, arrived_at=T0 + 40 * MINUTE),
    ]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    assert [(row.meter_id, row.pulses) for row in await stored_rows(database_url, 1)] == [(2, 1)]
    assert [(row.meter_id, row.pulses) for row in await stored_rows(database_url, 5)] == [(2, 1), (3, 5)]
    assert [(row.meter_id, row.pulses) for row in await stored_rows(database_url, 60)] == [(1, 30), (2, 1), (3, 30)]
    await assert_closed_as_expected(database_url, versions)


@pytest.mark.parametrize(
    ("interval", "serves"), [(1, {1, 5, 15, 60}), (5, {5, 15, 60}), (15, {15, 60}), (30, {60}), (60, {60})]
)
async def test_a_reading_serves_the_resolutions_that_are_not_finer(
    pool: Pool, database_url: str, interval: int, serves: set[int]
) -> None:
    await seed_meters(database_url, UTILITIES)
    versions = [
        version(meter, T0 + minute * MINUTE, meter + minute, interval_minutes=interval)
        for meter in UTILITIES
        for minute in range(0, 120, interval)
    ]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 3 * HOUR)
    await assert_closed_as_expected(database_url, versions)
    found = {resolution for resolution in RESOLUTIONS_MINUTES if await stored_rows(database_url, resolution)}
    assert found == serves


@pytest.mark.parametrize(
    ("cadence", "resolution", "minutes", "interval", "present", "expected"),
    [
        (1, 5, range(5), 1, 5, 5),
        (1, 5, range(4), 1, 4, 5),
        (5, 60, range(0, 60, 5), 5, 12, 12),
        (5, 60, range(59), 1, 11, 12),  # 59 minutes are not yet twelve times five
        (1, 5, [0], 5, 5, 5),  # one reading of five minutes covers what five of one would
        (15, 5, range(5), 1, 1, 1),
        (15, 5, range(3), 1, 0, 1),  # part of the one interval expected
        (30, 60, [0, 30], 30, 2, 2),
        (60, 60, [0], 60, 1, 1),
    ],
)
async def test_intervals_present_reach_the_expected_ones_exactly_when_the_window_is_covered(
    pool: Pool,
    database_url: str,
    cadence: int,
    resolution: int,
    minutes: Any,
    interval: int,
    present: int,
    expected: int,
) -> None:
    await seed_meters(database_url, UTILITIES, cadence_minutes=cadence)
    versions = [version(1, T0 + minute * MINUTE, 1, interval_minutes=interval) for minute in minutes]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    [row] = [row for row in await stored_rows(database_url, resolution) if row.window_start == T0]
    assert (row.intervals_present, row.intervals_expected) == (present, expected)
    await assert_closed_as_expected(database_url, versions, cadence_minutes=cadence)


async def test_the_configuration_in_force_at_the_windows_start_counts(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, UTILITIES)
    async with transaction(pool) as connection:
        changes = [
            (T0 + 30 * MINUTE, 2, "1"),  # takes over in the middle of the hour, which keeps the old one
            (T0 + 45 * MINUTE, 3, "2"),
            (T0 + 45 * MINUTE, 4, "3"),  # a correction of the one before
            (T0 + 10 * MINUTE, 5, "4"),  # entered last, for the past
            (T0 + 50 * MINUTE, 7, "5"),  # of a revision that is not committed when the windows close
        ]
        for valid_from, revision, units in changes:
            conversion = Conversion(Utility.ELECTRICITY, Decimal(units))
            await configure(connection, 1, conversion, valid_from=valid_from, revision=revision)
        await connection.execute("UPDATE catalog_revision SET revision = 6")
    await store_versions(database_url, [version(1, T0 + minute * MINUTE, 1) for minute in range(60)])
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    factors = [row.energy_wh for row in await stored_rows(database_url, 1)]
    assert factors == [1] * 10 + [4000] * 20 + [1000] * 15 + [3000] * 15
    [hour] = await stored_rows(database_url, 60)
    assert hour.energy_wh == 60
    assert {closing["catalog_revision"] for closing in await closings(pool)} == {6}


NUMBERS = st.decimals(Decimal("0.000000000001"), Decimal(10) ** 9, places=12).filter(lambda number: number > 0)
CONVERSIONS = st.builds(
    Conversion,
    utility=st.sampled_from(list(Utility)),
    units_per_pulse=NUMBERS,
    normalization_factor=NUMBERS,
    calorific_value=st.none() | NUMBERS,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cases=st.lists(
        st.tuples(CONVERSIONS, st.lists(st.integers(0, 10**15), min_size=1, max_size=3)), min_size=1, max_size=20
    )
)
async def test_the_database_converts_exactly_as_the_core_does(
    database_url: str, cases: list[tuple[Conversion, list[int]]]
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "TRUNCATE organization, reading, reading_superseded, measurement, window_closing, window_frontier, "
            "window_closed, ingest_progress, meter_register, meter_event CASCADE"
        )
    finally:
        await connection.close()
    meters = {number: conversion for number, (conversion, _) in enumerate(cases, start=1)}
    await seed_meters(database_url, meters)
    versions = [
        version(number, T0 + minute * MINUTE, count)
        for number, (_, counts) in enumerate(cases, start=1)
        for minute, count in enumerate(counts)
    ]
    await store_versions(database_url, versions)
    pool = await connect_pool(database_url, max_size=2)
    try:
        store = await begin(pool, database_url, T0 + 5 * HOUR)
        await close_all(store, T0 + HOUR)
    finally:
        pool.terminate()
    found = {row.meter_id: (row.energy_wh, row.volume) for row in await stored_rows(database_url, 60)}
    assert found == {
        number: convert(sum(counts), conversion) for number, (conversion, counts) in enumerate(cases, start=1)
    }
