"""Late readings on the real PostgreSQL: which are listed, what the window held, which runs missed them."""

import os
import random
from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from services.api.late_queries import MISSED, OUTRANKED, REPEAT, LateReading, Wanted, find_late
from services.core.readings import ReadingVersion, newest
from services.core.times import floor_to
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES, cut_off
from services.platform.postgres import Pool
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    begin,
    close_all,
    many_versions,
    seed_meters,
    store_versions,
    stored_rows,
    version,
)
from tests.support.command import Meterpost

HOUR = 60 * MINUTE
SPAN = (T0, T0 + 3 * HOUR)


class Expected(NamedTuple):
    """What the contract says of one late version."""

    verdict: str
    resolution_minutes: int
    window_start: datetime
    meter_id: int
    measured_at: datetime
    arrived_at: datetime
    value: int
    held_value: int | None


def expected_late(versions: list[ReadingVersion], resolution: int) -> list[Expected]:
    """Return the late versions of one resolution, one reading at a time."""
    by_key: dict[tuple[int, datetime], list[ReadingVersion]] = defaultdict(list)
    for one in versions:
        by_key[one.meter_id, one.measured_at].append(one)
    found = []
    for (meter_id, measured_at), some in by_key.items():
        start = floor_to(measured_at, timedelta(minutes=resolution))
        limit = cut_off(start, resolution, DEFAULT_GRACE)
        best, held = newest(some), newest(some, as_of=limit)
        if held is not None and held.interval_minutes > resolution:
            held = None
        for one in some:
            takes_part = one.interval_minutes <= resolution
            if one.arrived_at <= limit or not (takes_part or (one is best and held is not None)):
                continue
            verdict = MISSED
            if one is not best:
                verdict = OUTRANKED
            elif takes_part and held is not None and content(one) == content(held):
                verdict = REPEAT
            held_value = None if held is None else held.value
            found.append(
                Expected(verdict, resolution, start, meter_id, measured_at, one.arrived_at, one.value, held_value)
            )
    return found


def content(one: ReadingVersion) -> tuple[int, int, bool]:
    return one.value, one.interval_minutes, one.is_register


def told(one: LateReading) -> Expected:
    return Expected(*(getattr(one, name) for name in Expected._fields))


async def listed(
    pool: Pool, *resolutions: int, span: tuple[datetime, datetime] = SPAN, **more: Any
) -> list[LateReading]:
    wanted = Wanted(*span, resolutions or RESOLUTIONS_MINUTES, 1, **more)
    async with find_late(pool, wanted) as late:
        readings = await late.readings(with_repeats=True, limit=None)
        totals = await late.totals()
    verdicts = [one.verdict for one in readings]
    assert totals[:3] == tuple(verdicts.count(verdict) for verdict in (MISSED, REPEAT, OUTRANKED))
    return readings


def varied(seed: int) -> list[ReadingVersion]:
    """Return versions of many kinds; in a third of them repeats and longer intervals."""
    rng = random.Random(seed)
    versions = many_versions(seed, minutes=120)
    repeats = [
        one._replace(arrived_at=one.arrived_at + timedelta(seconds=rng.choice([1, 600, 4000])), source_offset=10**6 + n)
        for n, one in enumerate(rng.sample(versions, len(versions) // 3))
    ]
    longer = [
        one._replace(interval_minutes=5, source_offset=2 * 10**6 + n)
        for n, one in enumerate(versions)
        if one.measured_at.minute % 5 == 0 and rng.random() < 0.3
    ]
    return versions + repeats + longer


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_exactly_the_late_versions_are_listed_with_what_the_window_held(
    pool: Pool, database_url: str, seed: int
) -> None:
    versions = varied(seed)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 6 * HOUR)
    await close_all(store, T0 + 3 * HOUR)
    for resolution in RESOLUTIONS_MINUTES:
        expected = expected_late(versions, resolution)
        assert sorted(map(told, await listed(pool, resolution))) == sorted(expected)
        assert {MISSED, REPEAT, OUTRANKED} == {one.verdict for one in expected}
    part = (T0 + 20 * MINUTE, T0 + 40 * MINUTE)
    some = [one for one in expected_late(versions, 5) if part[0] <= one.window_start < part[1] and one.meter_id == 2]
    assert sorted(map(told, await listed(pool, 5, span=part, meter_id=2))) == sorted(some)


async def test_what_is_listed_is_what_the_closed_windows_lack(pool: Pool, database_url: str) -> None:
    """What the window held plus what it missed is what the newest versions amount to."""
    versions = [one for one in many_versions(5) if one.interval_minutes == 1]
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 6 * HOUR)
    await close_all(store, T0 + 3 * HOUR)
    by_key: dict[tuple[int, datetime], list[ReadingVersion]] = defaultdict(list)
    for one in versions:
        by_key[one.meter_id, one.measured_at].append(one)
    for resolution in RESOLUTIONS_MINUTES:
        now: dict[tuple[datetime, int], int] = defaultdict(int)
        for (meter_id, measured_at), some in by_key.items():
            best = newest(some)
            assert best is not None
            now[floor_to(measured_at, timedelta(minutes=resolution)), meter_id] += best.value
        for row in await stored_rows(database_url, resolution):
            now[row.window_start, row.meter_id] -= row.pulses
        for late in await listed(pool, resolution):
            if late.verdict == MISSED:
                now[late.window_start, late.meter_id] -= late.value - (late.held_value or 0)
        assert set(now.values()) == {0}


async def test_a_window_that_is_open_has_missed_nothing_and_one_before_the_first_missed_all(
    pool: Pool, database_url: str
) -> None:
    await seed_meters(database_url, UTILITIES)
    await store_versions(
        database_url,
        [
            version(1, T0 + 5 * MINUTE, 1, arrived_at=T0 + 20 * MINUTE),
            version(1, T0 - 2 * HOUR, 2, arrived_at=T0 + 20 * MINUTE),
        ],
    )
    store = await begin(pool, database_url, T0 + 30 * MINUTE)
    await close_all(store, T0 + 20 * MINUTE)
    span = (T0 - 3 * HOUR, T0 + HOUR)
    found = [(one.resolution_minutes, one.value, one.held_value) for one in await listed(pool, span=span)]
    assert sorted(found) == [(1, 1, None), (1, 2, None), (5, 1, None), (5, 2, None), (15, 2, None), (60, 2, None)]


async def test_another_grace_holds_from_the_window_on_that_was_closed_with_it(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, UTILITIES)
    late_by = {meter: timedelta(minutes=6 + meter) for meter in (1, 4)}
    versions = [
        version(meter, T0 + minute * MINUTE, 1, arrived_at=T0 + minute * MINUTE + late_by[meter])
        for meter in late_by
        for minute in (0, 10)
    ]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + HOUR)
    await close_all(store, T0 + 5 * MINUTE)
    longer = await begin(pool, database_url, T0 + HOUR, grace_seconds=480)
    await close_all(longer, T0 + 20 * MINUTE)
    found = [(one.meter_id, one.window_start, one.late_by) for one in await listed(pool, 1)]
    assert found == [
        (1, T0, timedelta(minutes=1)),
        (4, T0, timedelta(minutes=4)),
        (4, T0 + 10 * MINUTE, timedelta(minutes=1)),
    ]
    assert len(await stored_rows(database_url, 1)) == 1


RUNS = """
UPDATE catalog_revision SET revision = 1;
INSERT INTO site_description VALUES (1, '-infinity', 1, 'North depot', 'Europe/Berlin');
INSERT INTO site (site_id, organization_id, revision) VALUES (2, 1, 1);
INSERT INTO site_description VALUES (2, '-infinity', 1, 'South depot', 'Europe/Berlin');
UPDATE meter_configuration SET site_id = 2 WHERE meter_id = 2;
INSERT INTO export_job (job_id, organization_id, starts_at) OVERRIDING SYSTEM VALUE
SELECT n, 1, '-infinity' FROM generate_series(1, 4) n;
INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, frequency_minutes,
                                resolution_minutes, site_ids, transport, transport_settings)
VALUES (1, 1, 1, '-infinity', 'Fives', 'meters_measurements', 60, 5, NULL, 'https', '{}'),
       (1, 2, 1, '-infinity', 'Hours of the south', 'meters_measurements', 60, 60, '{2}', 'sftp', '{}'),
       (1, 3, 1, '-infinity', 'Catalog', 'catalog', 1440, 0, NULL, 'https', '{}'),
       (1, 4, 1, '-infinity', 'Paused', 'meters_measurements', 60, 5, NULL, 'https', '{}');
INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state)
SELECT 1, n, s, s + interval '1 hour', 1, 1, CASE n WHEN 4 THEN 'skipped' ELSE 'delivered' END
FROM generate_series(1, 4) n, generate_series($1::timestamptz, $1 + interval '1 hour', interval '1 hour') s
"""


async def prepare_runs(url: str) -> None:
    """Say that the jobs have run."""
    connection = await asyncpg.connect(url)
    try:
        for statement in RUNS.split(";\n"):
            await connection.execute(statement, *([T0] if "$1" in statement else []))
    finally:
        await connection.close()


@pytest.fixture
async def exported(pool: Pool, database_url: str) -> list[ReadingVersion]:
    """Give closed windows with runs of four jobs, and what came late for them."""
    await seed_meters(database_url, UTILITIES)
    await prepare_runs(database_url)
    after = T0 + 5 * HOUR
    versions = [version(meter, T0 + minute * MINUTE, 10) for meter in (1, 2, 3) for minute in range(120)]
    versions += [
        version(1, T0 + 7 * MINUTE, 11, revision=1, arrived_at=after),
        version(2, T0 + 65 * MINUTE, 12, revision=1, arrived_at=after),
        version(2, T0 + 66 * MINUTE, 12, revision=1, arrived_at=after),
        version(3, T0 + 9 * MINUTE, 10, revision=1, arrived_at=after),  # a repeat
        version(4, T0 + 8 * MINUTE, 3, arrived_at=after + timedelta(milliseconds=11)),
    ]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 6 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    return versions


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


FROM_TO = ("--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T12:00:00Z")


@pytest.mark.usefixtures("exported")
def test_the_command_names_the_runs_that_missed_them(meterpost: Meterpost) -> None:
    everything = meterpost.json("late", "list", *FROM_TO, "--repeats")
    assert everything["totals"] == {
        "missed": 16, "repeat": 4, "outranked": 0, "windows": 13, "meters": 3, "runs": 3,
        "longest_late_by_seconds": (5 * HOUR - 13 * MINUTE).total_seconds(),
    }  # fmt: skip
    runs = {(one["meter_id"], one["resolution_minutes"]): one["runs"] for one in everything["readings"]}
    assert runs[1, 5] == ["job1-20261120T100000Z"]
    assert runs[2, 5] == ["job1-20261120T110000Z"]
    assert runs[2, 60] == ["job2-20261120T110000Z"]
    assert runs[1, 60] == runs[1, 1] == runs[3, 5] == []
    held = {(one["meter_id"], one["resolution_minutes"]): one["held_value"] for one in everything["readings"]}
    assert (held[1, 5], held[4, 5]) == (10, None)
    of_job = meterpost.json("late", "list", *FROM_TO, "--job", "2")
    assert [one["value"] for one in of_job["readings"]] == [12, 12]
    of_run = meterpost.json("late", "list", "--run", "job1-20261120T100000Z")
    assert [(one["meter_id"], one["value"]) for one in of_run["readings"]] == [(1, 11), (4, 3)]
    of_site = meterpost.json("late", "list", *FROM_TO, "--site", "South depot", "--resolution", "1")
    assert [one["measured_at"][11:16] for one in of_site["readings"]] == ["11:05", "11:06"]
    groups = meterpost.json("late", "list", *FROM_TO, "--by-run", "--resolution", "5")["by_run"]
    assert [(one["meter_id"], one["run"], one["readings"], one["windows"]) for one in groups] == [
        (1, "job1-20261120T100000Z", 1, 1),
        (2, "job1-20261120T110000Z", 2, 1),
        (4, "job1-20261120T100000Z", 1, 1),
    ]
    for limit, is_cut in ((2, True), (3, False), (0, False)):
        answer = meterpost("late", "list", *FROM_TO, "--by-run", "--resolution", "5", "--limit", str(limit))
        assert ("the first 2 are shown" in answer.err) == is_cut
        assert answer.out.count("20261120T1") == (limit or 3)
    one = meterpost.ok("late", "list", *FROM_TO, "--resolution", "1", "--meter", "4")
    assert "Missed: 1 reading in 1 window of 1 meter, by 0 runs, at most 4:46:00.011 late." in one
    assert "4:46:00.011 " in one
    people = meterpost.ok("late", "list", *FROM_TO, "--resolution", "5")
    assert "job1-20261120T100000Z" in people
    assert "Missed: 4 readings in 3 windows of 3 meters, by 2 runs" in people


@pytest.mark.usefixtures("exported")
def test_the_export_writes_just_these_rows_as_they_are_now_in_the_jobs_format(meterpost: Meterpost) -> None:
    outcome = meterpost("late", "export", "--job", "1", *FROM_TO, "--output", "-")
    assert outcome.code == 0, outcome.err
    rows = outcome.json["measurements"]
    assert [(row["METER_ID"], row["MEASUREMENT_TIME(UTC)"][11:16], row["RESOLUTION(min)"]) for row in rows] == [
        (1, "10:05", 5), (4, "10:05", 5), (2, "11:05", 5),
    ]  # fmt: skip
    assert [row["ENERGY(Wh)"] for row in rows] == ["51.00", "N/A", "13500.00"]  # 41 + 11; …; 30 + 24 of 250 Wh
    assert [row["VOLUME"] for row in rows] == ["N/A", "1.50", "N/A"]
    assert rows[2]["SITE_NAME"] == "South depot"
    file = meterpost.folder / "late.csv"
    answer = meterpost.json("late", "export", "--job", "2", *FROM_TO, "--output", file)
    assert (answer["rows"], answer["missed_windows"], answer["runs"]) == (1, 1, 1)
    assert file.read_bytes() == (
        b"meter_id,meter_type,meter_name,meter_unit,measurement_time(UTC),resolution(minutes),site_id,site_name,"
        b"power(W),energy(Wh),flow,volume\n"
        b"2,heat,Meter,kWh,2026-11-20T11:00:00Z,60,2,South depot,151000.00,151000.00,N/A,N/A\n"
    )
    assert "exists" in meterpost.refused("late", "export", "--job", "2", *FROM_TO, "--output", file)
    meterpost.ok("late", "export", "--job", "2", *FROM_TO, "--output", file, "--overwrite")
    assert [path.name for path in meterpost.folder.iterdir()] == ["late.csv"]


async def test_a_register_that_came_late_corrects_the_row_after_it_too(
    pool: Pool, database_url: str, meterpost: Meterpost
) -> None:
    """The rows that were sent, with those of the export in their place, amount to the registers' difference."""
    await seed_meters(database_url, {1: UTILITIES[1], 2: UTILITIES[1]})
    await prepare_runs(database_url)
    after = T0 + 5 * HOUR
    late = {10, 11, 12, 13, 14, 40}  # all of a window of five minutes, and one in the middle of another
    versions = [
        version(meter, T0 + minute * MINUTE, 1000 + 7 * minute, is_register=True)
        for meter in (1, 2)
        for minute in range(60)
        if meter == 2 or minute not in late
    ]
    versions += [
        version(1, T0 + minute * MINUTE, 1000 + 7 * minute, is_register=True, arrived_at=after) for minute in late
    ]
    # The last of its window comes again, lower: the next row then begins there.
    versions.append(version(2, T0 + 29 * MINUTE, 1000 + 7 * 28, is_register=True, revision=1, arrived_at=after))
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 6 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    sent = {(row.meter_id, row.window_start): row.energy_wh for row in await stored_rows(database_url, 5)}
    assert sent[1, T0 + 15 * MINUTE] == 70  # what the window before it missed
    outcome = meterpost("late", "export", "--job", "1", *FROM_TO, "--output", "-")
    assert outcome.code == 0, outcome.err
    corrected = {
        (row["METER_ID"], datetime.fromisoformat(row["MEASUREMENT_TIME(UTC)"])): Decimal(row["ENERGY(Wh)"])
        for row in outcome.json["measurements"]
    }
    assert corrected == {
        (1, T0 + 10 * MINUTE): 35,
        (1, T0 + 15 * MINUTE): 35,
        (1, T0 + 40 * MINUTE): 35,
        (2, T0 + 25 * MINUTE): 28,
        (2, T0 + 30 * MINUTE): 42,
    }
    now = sent | corrected
    assert sum(amount or 0 for (meter, _), amount in now.items() if meter == 1) == 7 * 59
    assert sum(amount or 0 for (meter, _), amount in now.items() if meter == 2) == 7 * 59


@pytest.mark.usefixtures("exported")
def test_wrong_options_are_named(meterpost: Meterpost) -> None:
    assert "give both" in meterpost.refused("late", "list", "--from", "2026-11-20T10:00:00Z")
    assert "--to" in meterpost.refused("late", "list", "--from", "2026-11-20T10:00:00Z", "--to", "noon")
    assert "nothing lies between" in meterpost.refused("late", "list", "--from", FROM_TO[3], "--to", FROM_TO[1])
    assert "--resolution is 7" in meterpost.refused("late", "list", *FROM_TO, "--resolution", "7")
    assert "no site 'West'" in meterpost.refused("late", "list", *FROM_TO, "--site", "West")
    assert "no run" in meterpost.refused("late", "list", "--run", "job9-20261120T100000Z")
    assert "leave" in meterpost.refused("late", "list", "--run", "job1-20261120T100000Z", *FROM_TO)
    assert "no job 9" in meterpost.refused("late", "export", "--job", "9", *FROM_TO, "--output", "-")
    assert "choose one" in meterpost.refused("late", "export", "--job", "1", *FROM_TO, "--output", "-", "--json")
    nowhere = meterpost.folder / "no" / "folder"
    assert "cannot be written" in meterpost.refused("late", "export", "--job", "1", *FROM_TO, "--output", nowhere)
    for output in (meterpost.folder, "", "/", ".."):
        export = ("late", "export", "--job", "1", *FROM_TO, "--output", output, "--overwrite")
        assert "is no name for a file" in meterpost.refused(*export)
    assert "has no meter 99" in meterpost.refused("late", "list", *FROM_TO, "--meter", "99")
    for option in ("--meter", "--job", "--limit"):
        refused = meterpost.refused("late", "list", *FROM_TO, option, "99999999999999999999")
        assert "99999999999999999999 is beyond every id" in refused
    assert meterpost.json("late", "list", "--from", "0001-01-01T00:00:00Z", "--to", "9999-12-31T23:59:59Z")["readings"]
    refused = meterpost.refused("late", "list", "--from", "0001-01-01T00:00:00+14:00", "--to", FROM_TO[3])
    assert "--from: '0001-01-01T00:00:00+14:00' lies in no year" in refused


@pytest.mark.usefixtures("exported")
async def test_what_cannot_be_exported_says_why(meterpost: Meterpost, database_url: str) -> None:
    export = ("late", "export", "--job", "1", *FROM_TO, "--output")
    full = meterpost.folder / "full"
    os.symlink("/dev/full", f"{full}.partial")  # noqa: PTH211 - a disk without room
    assert f"{full} cannot be written: No space left on device" in meterpost.refused(*export, full)
    assert os.listdir(meterpost.folder) == []  # noqa: PTH208 - as above
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "UPDATE export_job_version SET data = 'catalog', frequency_minutes = 1440, resolution_minutes = 0 "
            "WHERE job_id = 1"
        )
    finally:
        await connection.close()
    assert "job 1 sends the catalog: no reading is late for it" in meterpost.refused(*export, "-")
