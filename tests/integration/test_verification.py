"""`meterpost windows verify`: what was closed proves itself, and whatever was changed afterwards is found."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.core.conversion import Conversion, Utility
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction
from services.windowing.forcing import add_force
from services.windowing.verification import Difference, verify
from tests.integration.test_closing_registers import METERS, MODULI, many_readings
from tests.support.closing import (
    MINUTE,
    T0,
    TOPICS,
    UTILITIES,
    begin,
    close_all,
    closings,
    configure,
    many_versions,
    seed_meters,
    store_progress,
    store_versions,
    version,
)
from tests.support.command import Meterpost

HOUR = 60 * MINUTE


async def verified(pool: Pool, resolution: int, start: Any = T0, end: Any = T0 + 10 * HOUR) -> list[Difference]:
    """Verify windows; return the differences."""
    found, count = [], 0
    async for step in verify(pool, resolution, start, end, 1000):
        found += step.differences
        count += step.difference_count
    assert count == len(found)
    return found


async def change(pool: Pool, statement: str, *arguments: Any) -> None:
    """Change what nobody should, at one place."""
    async with transaction(pool) as connection:
        await connection.execute("SELECT set_config('session_replication_role', 'replica', true)")  # no trigger
        done = await connection.execute(statement, *arguments)
    assert done.split()[-1] == "1"


async def store_all_offsets(pool: Pool, next_offset: int) -> None:
    """Say that everything below an offset is stored, of each partition that the tests' readings are from."""
    async with transaction(pool) as connection:
        await connection.execute(
            "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, first_arrival, epoch, owner) "
            "SELECT topic, partition, $1, watermark, first_arrival, 1, 'test' "
            "FROM (SELECT watermark, first_arrival FROM ingest_progress LIMIT 1) AS one "
            "CROSS JOIN unnest($2::text[]) AS topic CROSS JOIN generate_series(0, 2) AS partition "
            "ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
            next_offset,
            list(TOPICS),
        )


async def close_as_it_goes(pool: Pool, url: str, versions: list[Any], meters: Any, moduli: Any = None) -> None:
    """Close four hours in steps, so that windows have offsets of their own, with an edit of the catalog in between."""
    await seed_meters(url, meters, moduli=moduli)
    await store_versions(url, versions)
    for step, minute in enumerate((0, 31, 75, 76, 200, 240)):
        store = await begin(pool, url, T0 + 6 * HOUR)
        await store_all_offsets(pool, 1_000_000 + step)
        async with transaction(pool) as connection:
            if minute == 75:
                await connection.execute("UPDATE catalog_revision SET revision = 2")
                conversion = Conversion(Utility.WATER, Decimal(7))
                await configure(connection, 1, conversion, valid_from=T0, revision=2, modulus=(moduli or {}).get(1))
        await close_all(store, T0 + minute * MINUTE)


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_closed_in_steps_verifies_over_any_range(pool: Pool, database_url: str, seed: int) -> None:
    await close_as_it_goes(pool, database_url, many_readings(seed), METERS, MODULI)
    proofs = await closings(pool)
    assert {proof["catalog_revision"] for proof in proofs} == {1, 2}
    for resolution in RESOLUTIONS_MINUTES:
        assert await verified(pool, resolution) == []
        for minute in (7, 60, 133):
            assert await verified(pool, resolution, T0 + minute * MINUTE, T0 + (minute + 70) * MINUTE) == []
    assert await closings(pool) == proofs


@pytest.mark.parametrize("step", [5, 60], ids=["window by window", "many at once"])
async def test_proofs_are_in_the_order_of_meters_whoever_they_belong_to(
    pool: Pool, database_url: str, step: int
) -> None:
    """Rows are written by organization: verification sorts for itself, so it would find a proof in that order."""
    meters = {number: UTILITIES[1 + number % 5] for number in range(1, 301)}
    await seed_meters(database_url, meters)
    await pool.execute(
        "INSERT INTO organization (organization_id, name, revision) VALUES (2, 'Two', 1), (3, 'Three', 1);"
        "UPDATE meter SET organization_id = 1 + (meter_id * 7) % 3"
    )
    readings = [version(meter, T0 + minute * MINUTE, meter) for minute in range(0, 60, 4) for meter in meters]
    await store_versions(database_url, readings)
    store = await begin(pool, database_url, T0 + 6 * HOUR)
    await store_all_offsets(pool, 1_000_000)
    for minute in range(step, 61, step):
        await close_all(store, T0 + minute * MINUTE)
    assert {proof["row_count"] for proof in await closings(pool)} == {37, 38}
    for resolution in RESOLUTIONS_MINUTES:
        assert await verified(pool, resolution) == []


async def test_what_arrived_in_time_and_is_not_in_is_a_difference(pool: Pool, database_url: str) -> None:
    """Windows close when everything is stored that arrived in time: what was not, was closed too early."""
    await close_as_it_goes(pool, database_url, many_versions(4), UTILITIES)
    start = T0 + 2 * HOUR + 55 * MINUTE
    late = T0 + 3 * HOUR + 5 * MINUTE + timedelta(microseconds=1)
    await store_versions(database_url, [version(3, start, 5, source_offset=5_000_000, arrived_at=late)])
    await store_versions(database_url, [version(9, start, 5)])  # of a meter that nobody knows
    assert await verified(pool, 60) == []
    await store_versions(database_url, [version(1, start, 5, source_offset=5_000_000)])
    await store_versions(database_url, [version(2, start, 5, source_partition=9)])
    found = await verified(pool, 60)
    assert {one.window_start for one in found} == {T0 + 2 * HOUR}
    assert [(one.what, one.meter_id) for one in found if one.meter_id] == [("row_differs", 1), ("row_differs", 2)]


async def test_a_grace_that_was_changed_is_that_of_its_windows(pool: Pool, database_url: str) -> None:
    """Also of windows without a row, which leave no proof."""
    await seed_meters(database_url, UTILITIES)
    versions = [version(1, T0 + minute * MINUTE, 5, arrived_at=T0 + (minute + 4) * MINUTE) for minute in range(60)]
    await store_versions(database_url, versions)
    for grace, minute in ((300, 20), (60, 40), (300, 60)):
        store = await begin(pool, database_url, T0 + 6 * HOUR, grace_seconds=grace)
        await store_all_offsets(pool, 1_000_000)
        await close_all(store, T0 + minute * MINUTE)
    assert len([proof for proof in await closings(pool) if proof["resolution_minutes"] == 1]) == 40
    for resolution in RESOLUTIONS_MINUTES:
        assert await verified(pool, resolution) == []


async def test_forced_windows_among_others_hold_what_was_stored_then(pool: Pool, database_url: str) -> None:
    """Some without a row, which leave no proof: what came for them afterwards is in no register's way."""

    def registers(meter: int, minutes: range, first_offset: int) -> list[Any]:
        return [
            version(
                meter,
                T0 + minute * MINUTE,
                1000 + minute * minute,
                is_register=True,
                source_partition=meter - 1,
                source_offset=first_offset + number,
            )
            for number, minute in enumerate(minutes)
        ]

    async def stored(partition: int, next_offset: int, watermark: Any) -> None:
        await store_progress(database_url, watermark, first_arrival=T0, partition=partition)
        async with transaction(pool) as connection:
            await connection.execute(
                "UPDATE ingest_progress SET next_offset = $1 WHERE partition = $2", next_offset, partition
            )

    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, registers(1, range(30), 0) + registers(2, range(5), 0))
    store = await begin(pool, database_url, T0 + 40 * MINUTE)
    await stored(0, 30, T0 + 40 * MINUTE)
    await stored(1, 5, T0 + 9 * MINUTE)
    async with transaction(pool) as connection:
        force = await add_force(connection, T0 + 10 * MINUTE, ["readings.logger/1"], "test", "burnt down")
    await close_all(store, T0 + 40 * MINUTE)
    await store_versions(database_url, registers(2, range(5, 30), 5))
    await stored(1, 30, T0 + 40 * MINUTE)
    await close_all(store, T0 + 30 * MINUTE)
    async with transaction(pool) as connection:
        forced = await connection.fetch(
            "SELECT DISTINCT window_start FROM window_closing WHERE resolution_minutes = 1 AND force_id = $1", force
        )
    assert {(row["window_start"] - T0) // MINUTE for row in forced} == set(range(3, 10))
    async with transaction(pool) as connection:
        gap = await connection.fetchrow(
            "SELECT window_start, register_start_at, flags FROM measurement "
            "WHERE resolution_minutes = 1 AND meter_id = 2 AND window_start >= $1 ORDER BY window_start LIMIT 1",
            T0 + 5 * MINUTE,
        )
    assert gap is not None
    assert tuple(gap.values()) == (T0 + 10 * MINUTE, T0 + 5 * MINUTE, 1)
    for resolution in RESOLUTIONS_MINUTES:
        assert await verified(pool, resolution) == []
    await change(
        pool, "UPDATE reading SET source_offset = 4 WHERE source_partition = 1 AND measured_at = $1", T0 + 6 * MINUTE
    )
    assert {one.what for one in await verified(pool, 5)} == {"proof_missing", "row_differs", "proof_differs"}


async def test_long_and_sparse_ranges_are_verified_in_few_stretches(pool: Pool, database_url: str) -> None:
    day = timedelta(days=1)
    versions = [version(1, T0 + days * day + hour * HOUR, 5) for days in range(120) for hour in range(0, 24, 6)]
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 130 * day)
    # Each closed at its own moment, as they are when readings come as they are measured.
    for days in range(121):
        await store_all_offsets(pool, 1_000_000 + days)
        await close_all(store, T0 + days * day)
    steps = [step async for step in verify(pool, 60, T0 - day, T0 + 365 * day, 10)]
    assert (sum(step.windows for step in steps), sum(step.rows for step in steps)) == (480, 480)
    assert sum(step.difference_count for step in steps) == 0
    assert len(steps) <= 5


AT = "meter_id = 1 AND window_start = $1 AND resolution_minutes = 1"
CLOSING = "bucket = 1 AND window_start = $1 AND resolution_minutes = 1"
COPY_READING = "SELECT measured_at, arrived_at, 3, source_offset, 2, 0, 0, 0, 1, 1, false FROM reading"
COPY_ROW = "SELECT window_start, 2, organization_id, resolution_minutes, 1, 1, 5, 5, NULL FROM measurement"


async def test_a_row_or_an_event_before_the_first_window_is_found(pool: Pool, database_url: str) -> None:
    versions = [version(1, T0 + minute * MINUTE, 5) for minute in range(30)]
    await close_as_it_goes(pool, database_url, versions, UTILITIES)
    for resolution in RESOLUTIONS_MINUTES:
        assert await verified(pool, resolution, T0 - 48 * HOUR) == []
    await change(
        pool,
        "INSERT INTO measurement SELECT window_start - interval '2 hours', meter_id, organization_id, "
        "resolution_minutes, 1, 1, 5, 5, NULL FROM measurement WHERE resolution_minutes = 60 AND window_start = $1",
        T0,
    )
    await change(pool, "INSERT INTO meter_event VALUES (60, $1, 1, 1, 'register_reset', '{}')", T0 - 3 * HOUR)
    found = await verified(pool, 60, T0 - 48 * HOUR)
    assert [(one.window_start, one.meter_id, one.what, one.expected) for one in found] == [
        (T0 - 3 * HOUR, 1, "event_added", None),
        (T0 - 2 * HOUR, 1, "row_added", None),
    ]
    assert await verified(pool, 60) == await verified(pool, 15, T0 - 48 * HOUR) == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "DELETE FROM reading WHERE meter_id = 1 AND measured_at = $1",
            {"row_added": (1, 1), "row_differs": (5, 15, 60), "proof_differs": (1, 5, 15, 60)},
        ),
        (
            "UPDATE reading SET value = value + 1 WHERE meter_id = 1 AND measured_at = $1",
            {"row_differs": (1, 5, 15, 60), "proof_differs": (1, 5, 15, 60)},
        ),
        (
            f"INSERT INTO reading {COPY_READING} WHERE meter_id = 1 AND measured_at = $1",
            {"proof_missing": (1,), "row_differs": (5, 15, 60), "proof_differs": (5, 15, 60)},
        ),
        (
            f"UPDATE measurement SET pulses = pulses + 1 WHERE {AT}",
            {"row_differs": (1,)},
        ),
        (
            f"UPDATE measurement SET energy_wh = energy_wh * 2 WHERE {AT}",
            {"row_differs": (1,)},
        ),
        (
            "DELETE FROM measurement WHERE meter_id = 1 AND window_start = $1 AND resolution_minutes = 1",
            {"row_missing": (1,)},
        ),
        (
            f"INSERT INTO measurement {COPY_ROW} WHERE {AT}",
            {"proof_missing": (1,)},  # its bucket has no proof for that minute, in which nothing arrived
        ),
        (
            "DELETE FROM window_closing WHERE bucket = 1 AND window_start = $1 AND resolution_minutes = 1",
            {"proof_missing": (1,)},
        ),
        (
            f"UPDATE window_closing SET sha256 = sha256(sha256) WHERE {CLOSING}",
            {"proof_differs": (1,)},
        ),
        (
            f"UPDATE window_closing SET row_count = row_count + 1 WHERE {CLOSING}",
            {"proof_differs": (1,)},
        ),
        (
            "INSERT INTO meter_event VALUES (1, $1, 1, 1, 'register_reset', '{}')",
            {"event_added": (1,)},
        ),
    ],
)
async def test_a_planted_difference_is_found(
    pool: Pool, database_url: str, statement: str, expected: dict[str, tuple[int, ...]]
) -> None:
    planted = T0 + 20 * MINUTE
    versions = [version(1, T0 + minute * MINUTE, 10 + minute) for minute in range(120)]
    versions += [version(2, T0 + minute * MINUTE, 3) for minute in range(120) if minute != 20]
    await close_as_it_goes(pool, database_url, versions, UTILITIES)
    for resolution in RESOLUTIONS_MINUTES:
        assert await verified(pool, resolution) == []
    await change(pool, statement, planted)
    found: dict[str, set[int]] = {}
    for resolution in RESOLUTIONS_MINUTES:
        for one in await verified(pool, resolution):
            assert one.window_start <= planted < one.window_start + resolution * MINUTE
            found.setdefault(one.what, set()).add(resolution)
    assert found == {what: set(resolutions) for what, resolutions in expected.items()}


async def test_a_register_that_was_changed_shows_in_its_row_and_the_next(pool: Pool, database_url: str) -> None:
    versions = [version(1, T0 + minute * MINUTE, 100 + minute, is_register=True) for minute in range(0, 50, 10)]
    await close_as_it_goes(pool, database_url, versions, UTILITIES)
    await change(pool, "UPDATE reading SET value = 115 WHERE measured_at = $1", T0 + 20 * MINUTE)
    rows = [one for one in await verified(pool, 1) if one.what == "row_differs"]
    assert [(one.window_start - T0) // MINUTE for one in rows] == [20, 30]
    assert rows[0].expected is not None
    assert rows[0].found is not None
    assert (rows[0].expected["pulses"], rows[0].found["pulses"]) == (5, 10)
    await change(pool, "UPDATE reading SET value = 120 WHERE measured_at = $1", T0 + 20 * MINUTE)
    await change(
        pool,
        "DELETE FROM meter_event WHERE resolution_minutes = 1 AND kind = 'registers_begin' AND window_start = $1",
        T0,
    )
    assert [one.what for one in await verified(pool, 1)] == ["event_missing"]


async def test_windows_without_their_readings_are_not_verifiable_not_different(pool: Pool, database_url: str) -> None:
    day = timedelta(days=1)
    versions = [version(1, T0 + days * day + minute * MINUTE, 5) for days in (0, 1) for minute in range(3)]
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 3 * day)
    await store_all_offsets(pool, 1_000_000)
    await close_all(store, T0 + 2 * day)
    async with transaction(pool) as connection:
        await connection.execute(f"DROP TABLE reading_{T0:%Y%m%d}, reading_superseded_{T0:%Y%m%d}")
    steps = [step async for step in verify(pool, 1, T0 - day, T0 + 3 * day, 10)]
    assert [(step.windows, step.unverifiable, step.difference_count) for step in steps] == [(0, 3, 0), (3, 0, 0)]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (f"UPDATE measurement SET pulses = pulses + 1 WHERE {AT}", "rows_differ"),
        (f"UPDATE measurement SET energy_wh = energy_wh + 0.001 WHERE {AT}", "rows_differ"),
        (f"DELETE FROM measurement WHERE {AT}", "rows_differ"),
        (f"INSERT INTO measurement {COPY_ROW.replace(' 2,', ' 9,')} WHERE {AT}", "rows_differ"),
        (f"UPDATE window_closing SET sha256 = sha256(sha256) WHERE {CLOSING}", "rows_differ"),
        (f"DELETE FROM window_closing WHERE {CLOSING}", "proof_missing"),
    ],
)
async def test_rows_whose_readings_are_no_longer_kept_are_held_against_their_proof(
    pool: Pool, database_url: str, statement: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [version(meter, T0 + minute * MINUTE, 3 + minute) for meter in (1, 2) for minute in range(30)]
    await close_as_it_goes(pool, database_url, versions, UTILITIES)
    async with transaction(pool) as connection:
        await connection.execute("DROP TABLE reading_20261120, reading_superseded_20261120")
    monkeypatch.setattr("services.windowing.verification._READINGS", 15)  # several stretches
    steps = [step async for step in verify(pool, 1, T0, T0 + HOUR, 10)]
    assert len(steps) >= 4
    assert (sum(step.unverifiable for step in steps), sum(step.difference_count for step in steps)) == (30, 0)
    await change(pool, statement, T0 + 20 * MINUTE)
    [found] = await verified(pool, 1)
    assert (found.window_start, found.what) == (T0 + 20 * MINUTE, what)


async def test_of_windows_without_readings_no_more_proofs_are_looked_at_than_a_stretch_may_hold(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each stretch of a year would look at all proofs of what is left of the year."""
    versions = [version(meter, T0 + minute * MINUTE, 3 + minute) for meter in (1, 2) for minute in range(30)]
    await close_as_it_goes(pool, database_url, versions, UTILITIES)
    async with transaction(pool) as connection:
        await connection.execute("DROP TABLE reading_20261120, reading_superseded_20261120")
    monkeypatch.setattr("services.windowing.verification._PROOFS", 15)  # of seven windows, and one half
    steps = [step async for step in verify(pool, 1, T0, T0 + HOUR, 10)]
    assert [(step.unverifiable, step.difference_count) for step in steps] == [(7, 0)] * 4 + [(2, 0)]


async def test_the_command_says_what_was_compared_by_proof_alone(pool: Pool, database_url: str, tmp_path: Path) -> None:
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})
    await close_as_it_goes(pool, database_url, [version(1, T0, 5), version(1, T0 + 3 * MINUTE, 5)], UTILITIES)
    async with transaction(pool) as connection:
        await connection.execute("DROP TABLE reading_20261120, reading_superseded_20261120")
    range_ = ("--from", "2026-11-20T00:00:00Z", "--to", "2026-11-21T00:00:00Z")
    said = " ".join(meterpost.ok("windows", "verify", *range_, "--resolution", "1").split())
    assert said == (
        "2 windows cannot be recomputed, their readings are no longer kept: their rows were compared with the number "
        "and SHA-256 recorded at the close: equal."
    )
    await change(pool, f"UPDATE measurement SET pulses = pulses + 1 WHERE {AT}", T0)
    outcome = meterpost("windows", "verify", *range_, "--resolution", "1")
    assert outcome.code == 6
    assert "rows_differ" in outcome.out
    assert "recorded at the close." in outcome.out
    assert outcome.out.endswith("In all: 1 difference.\n")


async def test_before_anything_was_closed_there_is_nothing_to_verify(pool: Pool) -> None:
    with pytest.raises(UserError, match="nothing to verify"):
        await verified(pool, 1)


async def test_the_command_ends_with_6_where_something_differs(pool: Pool, database_url: str, tmp_path: Path) -> None:
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})
    versions = [version(1, T0 + minute * MINUTE, 5) for minute in range(30)]
    versions += [version(2, T0 + minute * MINUTE, 100 - minute, is_register=True) for minute in range(3)]
    await close_as_it_goes(pool, database_url, versions, UTILITIES)
    range_ = ("--from", "2026-11-20T00:00:00Z", "--to", "2026-11-21T00:00:00Z")
    assert "39 windows with 44 rows verified: equal." in meterpost.ok("windows", "verify", *range_)
    events = meterpost.ok("windows", "events", *range_, "--resolution", "60")
    assert "fell, which counts nothing" in events
    assert [one["kind"] for one in meterpost.json("windows", "events", *range_, "--meter", "2")["events"]].count(
        "registers_begin"
    ) == 4
    await change(
        pool,
        "UPDATE measurement SET pulses = 1005 WHERE resolution_minutes = 1 AND meter_id = 1 AND window_start = $1",
        T0 + 4 * MINUTE,
    )
    outcome = meterpost("windows", "verify", *range_)
    assert outcome.code == 6
    assert "pulses 1005" in outcome.out
    answer = meterpost("windows", "verify", *range_, "--resolution", "1", "--json")
    assert answer.code == 6
    [difference] = answer.json["differences"]
    assert (difference["meter_id"], difference["what"], difference["expected"]["pulses"]) == (1, "row_differs", 5)
    nothing = meterpost.ok("windows", "verify", "--from", "2026-11-22T00:00:00Z", "--to", "2026-11-23T00:00:00Z")
    assert "Nothing was verified" in nothing
    assert meterpost("windows", "verify", "--from", "0001-01-01T00:00Z", "--to", "9999-12-31T23:59:59Z").code == 6
    assert "--to: 'noon'" in meterpost.refused("windows", "verify", "--from", "2026-11-20T00:00:00Z", "--to", "noon")
    assert "has no meter 99" in meterpost.refused("windows", "events", *range_, "--meter", "99")
    for option in ("--meter", "--limit"):
        refused = meterpost.refused("windows", "events", *range_, option, "99999999999999999999")
        assert "99999999999999999999 is beyond every id" in refused
    assert meterpost("windows", "verify", *range_, "--resolution", "7").code == 2
    assert meterpost("windows", "verify", "--from", "2026-11-20", "--to", "2026-11-21T00:00:00Z").code == 2
    assert meterpost("windows", "events", *range_, "--kind", "odd").code == 2
