"""Silent and partial meters, counted over the windows in which a meter was to report."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.completeness_queries import completeness_of, meters_that_report_less_often
from services.core.times import floor_to
from services.platform.postgres import Pool, transaction
from tests.support.closing import MINUTE, T0, UTILITIES, begin, close_all, seed_meters, store_versions, version
from tests.support.command import Meterpost
from tests.support.exports import DAY, Exports, at, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver

HOUR = 60 * MINUTE
FROM_TO = ("--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T12:00:00Z")


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


async def attach(url: str, meter_id: int, valid_from: datetime | None = None, *, to: int | None = None) -> None:
    """Attach a meter to the input of its number, or what else `to` says: 0 takes it off."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("INSERT INTO device VALUES ('LG-1', 1, 'logger', 1) ON CONFLICT DO NOTHING")
        await connection.execute(
            "INSERT INTO input_attachment VALUES ('LG-1', $1, coalesce($2, '-infinity'::timestamptz), 1, $3)",
            *(meter_id, valid_from, {None: meter_id, 0: None}.get(to, to)),
        )
    finally:
        await connection.close()


async def test_silent_and_partial_meters_are_listed(pool: Pool, database_url: str, meterpost: Meterpost) -> None:
    await seed_meters(database_url, UTILITIES)
    await attach(database_url, 1)
    await attach(database_url, 2)
    await attach(database_url, 3)
    await attach(database_url, 4, T0 + 90 * MINUTE)  # from its first window after that on: none of an hour
    # Meter 5 hangs nowhere.
    versions = [version(1, T0 + minute * MINUTE, 1) for minute in range(120)]
    versions += [version(2, T0 + minute * MINUTE, 1) for minute in range(30)]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    for resolution in (1, 5, 15, 60):
        await store.move_closed(resolution)
    answer = meterpost.json("windows", "completeness", *FROM_TO)
    assert answer["totals"] == {
        "meters": 3, "silent": 1, "partial": 1, "intervals_expected": 360, "intervals_present": 150,
    }  # fmt: skip
    listed = [(one["meter_id"], one["state"], one["intervals_present"], one["windows"]) for one in answer["meters"]]
    assert listed == [(2, "partial", 30, 2), (3, "silent", 0, 2)]
    assert answer["meters"][0]["last_window_start"] == "2026-11-20T10:00:00Z"
    quarters = meterpost.json("windows", "completeness", *FROM_TO, "--resolution", "15", "--all")
    assert [(one["meter_id"], one["state"], one["windows_present"], one["windows"]) for one in quarters["meters"]] == [
        (1, "complete", 8, 8), (2, "partial", 2, 8), (3, "silent", 0, 8), (4, "silent", 0, 2),
    ]  # fmt: skip
    people = meterpost.ok("windows", "completeness", *FROM_TO)
    assert "3 meters: 1 silent, 1 partial. Intervals: 150 of 360 expected, 210 missing." in people
    cut = meterpost("windows", "completeness", "--from", "2026-11-20T11:00:00Z", "--to", "2026-11-21T00:00:00Z")
    assert "only windows that start from 2026-11-20T11:00:00Z to before 2026-11-20T12:00:00Z" in cut.err
    refused = meterpost.refused(
        "windows", "completeness", "--from", "2027-01-01T00:00:00Z", "--to", "2028-01-01T00:00Z"
    )
    assert "no window of 60 minutes is closed there" in refused
    assert "--resolution is 7" in meterpost.refused("windows", "completeness", *FROM_TO, "--resolution", "7")
    assert "no site" in meterpost.refused("windows", "completeness", *FROM_TO, "--site", "Nowhere")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=st.lists(
        st.tuples(st.integers(1, 2), st.integers(-5, 130), st.booleans()), max_size=6, unique_by=lambda one: one[:2]
    ),
    bridge=st.lists(st.tuples(st.integers(-5, 130), st.booleans()), max_size=4, unique_by=lambda one: one[0]),
    cadences=st.lists(
        st.tuples(st.integers(-5, 130), st.sampled_from([1, 5, 15, 30, 60])), max_size=4, unique_by=lambda one: one[0]
    ),
    resolution=st.sampled_from([1, 5, 15, 60]),
)
async def test_what_is_expected_is_what_a_walk_over_the_windows_finds(
    database_url: str,
    inputs: list[tuple[int, int, bool]],
    bridge: list[tuple[int, bool]],
    cadences: list[tuple[int, int]],
    resolution: int,
) -> None:
    """Meter 1 may hang on two inputs and a bridge, on several at once or on none, while its cadence changes."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("TRUNCATE organization, device CASCADE")
    finally:
        await connection.close()
    await seed_meters(database_url, {})
    connection = await asyncpg.connect(database_url)
    start = T0 + 15 * MINUTE
    end = start + HOUR
    try:
        await connection.execute("INSERT INTO device VALUES ('LG-1', 1, 'logger', 1), ('BR-1', 1, 'bridge', 1)")
        await connection.execute(
            "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
            "VALUES (1, 1, 'Electricity', 'electricity', 1)"
        )
        for minute, cadence in cadences:
            await connection.execute(
                "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, "
                "units_per_pulse, cadence_minutes) VALUES (1, $1, 1, 'M', 1, 'kWh', 1, $2)",
                T0 + minute * MINUTE,
                cadence,
            )
        for input_, minute, is_on in inputs:
            await connection.execute(
                "INSERT INTO input_attachment VALUES ('LG-1', $1, $2, 1, $3)",
                *(input_, T0 + minute * MINUTE, 1 if is_on else None),
            )
        for minute, is_on in bridge:
            await connection.execute(
                "INSERT INTO bridge_attachment VALUES ('BR-1', 1, $1, 1, $2)", T0 + minute * MINUTE, is_on
            )
        found = await connection.fetchrow(
            "SELECT coalesce(sum(windows), 0), coalesce(sum(windows * intervals_each), 0) "
            "FROM expected_windows(1, $1, $2, $3, 1, NULL)",
            resolution, start, end,
        )  # fmt: skip
        without = await connection.fetchval(
            "SELECT coalesce(sum(windows), 0) FROM reporting_stretches(1, $1, $2, $3, 1, NULL) "
            "WHERE cadence_minutes > $1",
            resolution, start, end,
        )  # fmt: skip
    finally:
        await connection.close()
    windows = intervals = seldom = 0
    step = timedelta(minutes=resolution)
    at_ = floor_to(start + step - timedelta(microseconds=1), step)
    while at_ < end:
        minute = (at_ - T0) // MINUTE
        in_force = max((one for one in cadences if one[0] <= minute), default=None)
        on_inputs = [
            max(
                ((since, is_on) for one, since, is_on in inputs if one == number and since <= minute),
                default=(0, False),
            )
            for number in (1, 2)
        ]
        on_bridge = max((one for one in bridge if one[0] <= minute), default=(0, False))
        if in_force and any(is_on for _since, is_on in [*on_inputs, on_bridge]):
            if in_force[1] <= resolution:
                windows += 1
                intervals += resolution // in_force[1]
            else:  # no reading of it fits into the window
                seldom += 1
        at_ += step
    assert found is not None
    assert tuple(map(int, found)) == (windows, intervals)
    assert without == seldom


async def configure(url: str, meter_id: int, cadence_minutes: int, valid_from: datetime | None = None) -> None:
    """Correct the cadence of a meter from an instant on, or from ever."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("UPDATE catalog_revision SET revision = 2")
        await connection.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
            "cadence_minutes) VALUES ($1, coalesce($2, '-infinity'::timestamptz), 2, 'M', 1, 'kWh', 0.001, $3)",
            *(meter_id, valid_from, cadence_minutes),
        )
    finally:
        await connection.close()


async def test_nothing_is_expected_of_meters_that_report_less_often(
    pool: Pool, database_url: str, meterpost: Meterpost
) -> None:
    """Meters 1 and 2 have a cadence of 15 minutes, 3 has had it since 11:00; meter 2 sends every minute."""
    await seed_meters(database_url, UTILITIES)
    for meter_id in (1, 2, 3, 4):
        await attach(database_url, meter_id)
    await configure(database_url, 1, 15)
    await configure(database_url, 2, 15)
    await configure(database_url, 3, 15, T0 + HOUR)
    versions = [version(1, T0 + quarter * 15 * MINUTE, 1, interval_minutes=15) for quarter in range(8)]
    versions += [version(meter_id, T0 + minute * MINUTE, 1) for meter_id in (2, 4) for minute in range(120)]
    versions += [version(3, T0 + minute * MINUTE, 1) for minute in range(30)]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    for resolution in (1, 5, 15, 60):
        await store.move_closed(resolution)
    fives = meterpost.json("windows", "completeness", *FROM_TO, "--resolution", "5", "--all")
    assert fives["totals"] == {
        "meters": 2, "silent": 0, "partial": 1, "intervals_expected": 60 + 120, "intervals_present": 30 + 120,
    }  # fmt: skip
    listed = [(one["meter_id"], one["state"], one["windows_present"], one["windows"]) for one in fives["meters"]]
    assert listed == [(3, "partial", 6, 12), (4, "complete", 24, 24)]
    assert fives["less_often_meter_ids"] == [1, 2, 3]
    async with transaction(pool) as connection:
        rows = await connection.fetch(
            "SELECT meter_id, count(*), min(intervals_expected) FROM measurement "
            "WHERE resolution_minutes = 5 GROUP BY meter_id ORDER BY meter_id"
        )
    assert [tuple(row) for row in rows] == [(2, 24, 1), (3, 6, 5), (4, 24, 5)]
    people = meterpost.ok("windows", "completeness", *FROM_TO, "--resolution", "5")
    assert "2 meters: 0 silent, 1 partial. Intervals: 150 of 180 expected, 30 missing." in people
    assert "3 meters report less often than every 5 minutes" in people
    minutes = meterpost.ok("windows", "completeness", *FROM_TO, "--resolution", "1")
    assert "3 meters report less often than every minute" in minutes
    quarters = meterpost.json("windows", "completeness", *FROM_TO, "--resolution", "15", "--all")
    assert [(one["meter_id"], one["intervals_present"], one["intervals_expected"]) for one in quarters["meters"]] == [
        (1, 8, 8), (2, 8, 8), (3, 30, 64), (4, 120, 120),
    ]  # fmt: skip
    assert quarters["less_often_meter_ids"] == []
    assert "less often" not in meterpost.ok("windows", "completeness", *FROM_TO, "--resolution", "15")


async def test_sites_and_corrections_of_the_cadence_are_followed(pool: Pool, database_url: str) -> None:
    await seed_meters(database_url, {1: UTILITIES[1]}, cadence_minutes=1)
    await attach(database_url, 1)
    await store_versions(database_url, [version(1, T0 + n * 5 * MINUTE, 1, interval_minutes=5) for n in range(12)])
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    async with transaction(pool) as connection:
        await connection.execute("UPDATE catalog_revision SET revision = 2")
        await connection.execute("INSERT INTO site (site_id, organization_id, revision) VALUES (2, 1, 2)")
        await connection.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
            "cadence_minutes) VALUES (1, '-infinity', 2, 'M', 1, 'kWh', 1, 5), (1, $1, 2, 'M', 2, 'kWh', 1, 5)",
            T0 + HOUR,
        )
        found = {
            site: [
                (one.site_id, one.state, one.intervals_present, one.intervals_expected)
                for one in await completeness_of(connection, 1, 60, T0, T0 + 2 * HOUR, site)
            ]
            for site in (None, 1, 2)
        }
        less_often = [
            await meters_that_report_less_often(connection, 1, 1, T0, T0 + hours * HOUR, site)
            for hours, site in ((2, None), (1, 1), (1, 2), (2, 2))
        ]
    assert found == {None: [(2, "partial", 12, 24)], 1: [(1, "complete", 12, 12)], 2: [(2, "silent", 0, 12)]}
    assert less_often == [[1], [1], [], [1]]


async def test_a_run_carries_its_totals_and_whether_it_was_forced(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], meterpost: Meterpost
) -> None:
    await exports.seed(meters=10)
    await exports.execute("INSERT INTO device VALUES ('BR-1', 1, 'bridge', 1)")
    await exports.execute("INSERT INTO bridge_attachment SELECT 'BR-1', meter_id, '-infinity', 1, true FROM meter")
    await exports.close_windows(15, DAY, at(2), meters=range(1, 9))
    await exports.closed(15, at(4), opened_at=DAY)
    await exports.execute(
        "WITH f AS (INSERT INTO window_force (closes_until, partitions, requested_by, reason) "
        "VALUES ($1, '{t/1}', 'me', 'stuck') RETURNING force_id) "
        "INSERT INTO window_forced (resolution_minutes, bucket, from_start, until_start, force_id, stored_before) "
        "SELECT 15, 0, $2, $1, force_id, '{}' FROM f",
        at(1), at(0, 45),
    )  # fmt: skip
    job = await exports.add_job(to, sites=[2])

    async def is_done() -> bool:
        return await exports.states(job) == ["delivered", "delivered", "empty", "empty"]

    async with delivering(exports.url):
        await eventually_async(is_done, 20, because="the runs are delivered")
    runs = {run["slot_start"][11:13]: run for run in meterpost.json("runs", "list")["runs"]}
    # Rows tell one interval present of one expected, which is all; of five meters of the site one never reported.
    counts = {hour: (run["intervals_present"], run["intervals_expected"], run["silent_meter_count"])
              for hour, run in runs.items() if run["state"] == "delivered"}  # fmt: skip
    assert counts == {"00": (240, 300, 1), "01": (240, 300, 1)}
    assert [runs[hour]["is_forced"] for hour in ("00", "01")] == [True, False]
    empty = meterpost.json("runs", "show", runs["03"]["run"])
    assert (empty["intervals_present"], empty["intervals_expected"], empty["silent_meter_count"]) == (0, 300, 5)
    people = meterpost.ok("runs", "list")
    assert "80 %" in people
    assert "forced" in people
    shown = meterpost.ok("runs", "show", runs["00"]["run"])
    assert "240 of 300 expected (80 %); silent meters: 1." in shown
    assert "FORCED" in shown


async def test_a_run_of_which_nothing_was_expected_says_so(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], meterpost: Meterpost
) -> None:
    """All meters report less often than the job's resolution; in the first slot one sends rows all the same."""
    await exports.seed(meters=2)
    await exports.execute("UPDATE meter_configuration SET cadence_minutes = 60")
    await exports.execute("INSERT INTO device VALUES ('BR-1', 1, 'bridge', 1)")
    await exports.execute("INSERT INTO bridge_attachment SELECT 'BR-1', meter_id, '-infinity', 1, true FROM meter")
    await exports.close_windows(15, DAY, at(1), meters=[1])
    await exports.closed(15, at(2), opened_at=DAY)
    job = await exports.add_job(to)
    await exports.execute("UPDATE export_job_version SET manifest = true")

    async def is_done() -> bool:
        return await exports.states(job) == ["delivered", "empty"]

    async with delivering(exports.url):
        await eventually_async(is_done, 20, because="the run is delivered")
    manifest = json.loads(receiver.accepted[-1].body)
    assert (manifest["rows"], manifest["completeness"]) == (4, {"intervals_present": 0, "intervals_expected": 0})
    for run in meterpost.json("runs", "list")["runs"]:
        shown = meterpost.json("runs", "show", run["run"])
        assert (shown["intervals_present"], shown["intervals_expected"], shown["silent_meter_count"]) == (0, 0, 0)
        assert "Intervals: none was expected" in meterpost.ok("runs", "show", run["run"])
    assert "%" not in meterpost.ok("runs", "list")
