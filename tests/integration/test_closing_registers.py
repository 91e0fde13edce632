"""Closing registers on the real PostgreSQL: differences, gaps, roll-overs, resets, and pulses beside them."""

import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.core.conversion import Conversion, Utility
from services.core.readings import ReadingVersion
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES
from services.platform.postgres import Pool, transaction
from tests.support.closing import (
    CLOSED_TABLES,
    MINUTE,
    T0,
    Row,
    TellingEvent,
    assert_closed_as_expected,
    begin,
    close_all,
    closings,
    expected,
    seed_meters,
    store_versions,
    stored_events,
    stored_rows,
    version,
)

HOUR = 60 * MINUTE
METERS = {number: Conversion(Utility.WATER, Decimal("0.5")) for number in range(1, 13)}
MODULI = {number: 1000 for number in METERS if number % 3}


def register(meter_id: int, minute: int, value: int, **more: Any) -> ReadingVersion:
    """Return a register at the end of a minute of the first hours."""
    return version(meter_id, T0 + minute * MINUTE, value, is_register=True, **more)


async def closed(
    pool: Pool, url: str, versions: list[ReadingVersion], moduli: dict[int, int] | None = None, until: int = 6
) -> None:
    """Close the hours from T0 on with these readings, and compare all with the rules."""
    await seed_meters(url, METERS, moduli=moduli)
    await store_versions(url, versions)
    store = await begin(pool, url, T0 + 2 * until * HOUR)
    await close_all(store, T0 + until * HOUR)
    await assert_closed_as_expected(url, versions, METERS, moduli=moduli)


async def test_rows_add_up_to_the_difference_of_the_registers_over_gaps_too(pool: Pool, database_url: str) -> None:
    values = {0: 100, 1: 103, 2: 103, 7: 120, 65: 200, 190: 1000}
    await closed(pool, database_url, [register(1, minute, value) for minute, value in values.items()])
    for resolution in RESOLUTIONS_MINUTES:
        rows = await stored_rows(database_url, resolution)
        assert sum(row.pulses for row in rows) == 900
        assert [event.detail for event in await stored_events(database_url, resolution)] == [
            {"register": 100, "at": "2026-11-20T10:01:00Z"}
        ]
    minutes = {(row.window_start - T0) // MINUTE: (row.pulses, row.flags) for row in await stored_rows(database_url, 1)}
    assert minutes == {1: (3, 0), 2: (0, 0), 7: (17, 1), 65: (80, 1), 190: (800, 1)}
    first, second, third = await stored_rows(database_url, 60)
    assert first == Row(
        60, T0, 1, 4, 60, 20, None, Decimal(10), 0, 100, T0 + MINUTE, 120, T0 + 8 * MINUTE
    )  # begins at a register of its own
    assert (second.pulses, second.flags, second.register_start, second.register_end) == (80, 1, 120, 200)
    assert (third.pulses, third.flags, third.window_start) == (800, 1, T0 + 3 * HOUR)


async def test_a_lone_first_register_gives_no_row_but_a_proof(pool: Pool, database_url: str) -> None:
    await closed(pool, database_url, [register(1, 0, 500)])
    assert [await stored_rows(database_url, resolution) for resolution in RESOLUTIONS_MINUTES] == [[]] * 4
    proofs = await closings(pool)
    assert [(proof["resolution_minutes"], proof["row_count"]) for proof in proofs] == [(1, 0), (5, 0), (15, 0), (60, 0)]


@pytest.mark.parametrize(
    ("before", "after", "minutes_between", "pulses", "flag"),
    [
        (990, 5, 1, 15, 2),
        (999, 49, 1, 50, 2),  # exactly the largest share
        (999, 50, 1, 0, 4),
        (999, 99, 2, 100, 2),  # two intervals, twice as much
        (999, 100, 2, 0, 4),
        (999, 499, 58, 500, 2),  # exactly half
        (999, 500, 58, 0, 4),
        (1003, 2, 1, 0, 4),  # a register that the modulus does not allow
    ],
)
async def test_a_falling_register_rolled_over_where_that_is_plausible_else_it_was_reset(
    pool: Pool, database_url: str, before: int, after: int, minutes_between: int, pulses: int, flag: int
) -> None:
    moduli = {1: 1000, 3: 1000}
    versions = [
        register(meter, minute, value)
        for meter in (1, 2, 3)
        for minute, value in ((0, before), (minutes_between, after), (minutes_between + 60, after + 4))
    ]
    await closed(pool, database_url, versions, moduli)
    hours = [row for row in await stored_rows(database_url, 60) if row.meter_id != 2]
    assert [(row.pulses, row.flags) for row in hours] == [(pulses, flag)] * 2 + [(4, 1)] * 2
    # Without a modulus nothing can roll over.
    assert [(row.pulses, row.flags) for row in await stored_rows(database_url, 60) if row.meter_id == 2] == [
        (0, 4),
        (4, 1),
    ]
    told = {event.kind for event in await stored_events(database_url, 60) if event.meter_id == 1}
    beyond = {"register_beyond_modulus"} if before > 1000 else set()
    assert told == {"registers_begin", "register_rolled_over" if flag == 2 else "register_reset"} | beyond


async def test_pulses_beside_registers_are_not_counted_and_said_so(pool: Pool, database_url: str) -> None:
    """The kind of the latest window decides, a window of the other kind alone changes over."""
    versions = [
        *(version(1, T0 + minute * MINUTE, 1) for minute in range(60)),
        register(1, 70, 500),  # beside pulses
        *(version(1, T0 + minute * MINUTE, 1) for minute in range(60, 65)),
        register(1, 130, 510),  # alone
        register(1, 140, 520),
        register(1, 190, 530),
        *(version(1, T0 + minute * MINUTE, 1) for minute in range(180, 187)),  # beside registers
        *(version(1, T0 + minute * MINUTE, 1) for minute in range(240, 250)),  # alone
        register(1, 310, 600),
        register(1, 311, 601),
    ]
    await closed(pool, database_url, versions)
    hours = [
        ((row.window_start - T0) // HOUR, row.pulses, row.flags, row.register_start)
        for row in await stored_rows(database_url, 60)
    ]
    assert hours == [
        (0, 60, 0, None),
        (1, 5, 8, None),
        (2, 10, 0, 510),
        (3, 10, 9, 520),
        (4, 10, 0, None),
        (5, 1, 0, 600),
    ]
    told = [((event.window_start - T0) // HOUR, event.kind) for event in await stored_events(database_url, 60)]
    assert told == [
        (1, "other_kind_ignored"),
        (2, "registers_begin"),
        (3, "other_kind_ignored"),
        (4, "pulses_begin"),
        (5, "registers_begin"),
    ]


async def test_a_reading_inside_a_longer_one_is_not_counted_twice(pool: Pool, database_url: str) -> None:
    versions = [
        *(version(1, T0 + minute * MINUTE, 1) for minute in range(4, 14)),
        version(1, T0 + 5 * MINUTE, 7, interval_minutes=5, revision=1, arrived_at=T0 + 11 * MINUTE),
        version(2, T0, 3, interval_minutes=15, arrived_at=T0 + 16 * MINUTE),
        version(2, T0 + 5 * MINUTE, 2, interval_minutes=5, arrived_at=T0 + 11 * MINUTE),
        version(2, T0 + 20 * MINUTE, 2, interval_minutes=5, arrived_at=T0 + 26 * MINUTE),
        # Beside registers, too: a meter without a window before counts by its pulses.
        register(3, 1, 100),
        register(3, 5, 101),
        version(3, T0 + 10 * MINUTE, 2, interval_minutes=5, arrived_at=T0 + 16 * MINUTE),
        version(3, T0 + 11 * MINUTE, 2),
    ]
    await closed(pool, database_url, versions)
    quarters = {(row.meter_id, (row.window_start - T0) // MINUTE): row for row in await stored_rows(database_url, 15)}
    row = quarters[1, 0]
    assert (row.pulses, row.intervals_present, row.flags) == (1 + 7 + 4, 10, 8)
    assert [(event.meter_id, event.kind, event.detail) for event in await stored_events(database_url, 15)] == [
        (1, "overlap_ignored", {"readings": 4, "pulses": 4}),
        (2, "overlap_ignored", {"readings": 1, "pulses": 2}),
        (3, "other_kind_ignored", {"kind": "registers", "readings": 2}),
        (3, "overlap_ignored", {"readings": 1, "pulses": 2}),
    ]
    assert (quarters[2, 0].pulses, quarters[2, 15].pulses, quarters[2, 15].flags) == (3, 2, 0)


def many_readings(seed: int, minutes: int = 200) -> list[ReadingVersion]:
    """Return registers and pulses of several meters: late, corrected, missing, of mixed intervals, falling."""
    rng = random.Random(seed)
    # What chance seldom makes: an overlap, and a register that its modulus does not allow.
    versions = [version(1, T0 + 30 * MINUTE, 9, interval_minutes=30), version(1, T0 + 45 * MINUTE, 8)]
    versions.append(register(1, 190, 5000))
    for meter in list(METERS)[1:]:
        value, is_register, minute = rng.randrange(1000), rng.random() < 0.7, 0
        while minute < minutes:
            interval = rng.choice([interval for interval in (1, 1, 1, 5, 15) if minute % interval == 0])
            if rng.random() < 0.02:
                is_register = not is_register
            if rng.random() < 0.1:  # a gap, and then whatever
                minute += rng.randrange(1, 40)
                interval = 1
            value += rng.choice([0, 1, 5, 30, 30])
            if rng.random() < 0.05:
                value = rng.randrange(1200)
            elif rng.random() < 0.9 and meter in MODULI:
                value %= MODULI[meter]
            for revision in range(rng.choice([1, 1, 1, 1, 2, 3])):
                delay = rng.choice([1, 60, 240, 299, 300, 301, 600, 3600, 4200])
                versions.append(
                    version(
                        meter,
                        T0 + minute * MINUTE,
                        value + rng.choice([0, 0, 3]) if is_register else rng.randrange(100),
                        arrived_at=T0 + (minute + interval) * MINUTE + timedelta(seconds=delay),
                        revision=rng.choice([0, revision]),
                        interval_minutes=interval,
                        is_register=is_register if rng.random() < 0.97 else not is_register,
                        source_partition=rng.randrange(3),
                    )
                )
            minute += 1 if rng.random() < 0.2 else interval
    return versions


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_any_readings_close_by_the_rules_in_chunks_as_window_by_window(
    pool: Pool, database_url: str, seed: int
) -> None:
    versions = many_readings(seed)
    until = T0 + 4 * HOUR
    await seed_meters(database_url, METERS, moduli=MODULI)
    await store_versions(database_url, versions)

    async def result() -> list[Any]:
        await assert_closed_as_expected(database_url, versions, METERS, moduli=MODULI)
        async with transaction(pool) as connection:
            state = await connection.fetch("SELECT * FROM meter_register ORDER BY 1, 2")
        proofs = await closings(pool)
        async with transaction(pool) as connection:
            await connection.execute(f"TRUNCATE {CLOSED_TABLES}")
        return [proofs, [tuple(row) for row in state]]

    found = []
    for readings in (10_000_000, 40, 1):
        store = await begin(pool, database_url, until + 2 * HOUR, statement_readings=readings)
        await close_all(store, until)
        found.append(await result())
    store = await begin(pool, database_url, until + 2 * HOUR)
    for minute in range(0, 241, 7):  # as a watermark that moves on would announce it
        for key in sorted(store.keys):
            await store.advance(key, T0 + minute * MINUTE)
    await close_all(store, until)
    found.append(await result())
    assert found[0] == found[1] == found[2] == found[3]
    told = {event.kind for resolution in RESOLUTIONS_MINUTES for event in _events(versions, resolution)}
    assert len(told) == 7  # every kind of event occurs


def _events(versions: list[ReadingVersion], resolution: int) -> list[TellingEvent]:
    return expected(versions, resolution, DEFAULT_GRACE, METERS, moduli=MODULI)[1]


async def test_the_modulus_in_force_at_the_windows_start_counts(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, METERS, moduli={1: 1000})
    async with transaction(pool) as connection:
        await connection.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
            "register_modulus) VALUES (1, $1, 1, 'Meter', 1, 'm3', 1, 2000)",
            T0 + HOUR,
        )
    versions = [register(1, 0, 990), register(1, 1, 5), register(1, 60, 1990), register(1, 61, 5)]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 3 * HOUR)
    rows = await stored_rows(database_url, 60)
    assert [(row.pulses, row.flags) for row in rows] == [(15, 2), (1985 + 15, 3)]
