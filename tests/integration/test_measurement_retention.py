"""Closed windows are kept as long as the settings say, and no run loses its rows by it. On a real PostgreSQL."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.api.request_store import Asker, request_give_up
from services.cli.show import Answer
from services.cli.window_status import resolution_statuses, show_status
from services.core.windows import RESOLUTIONS_MINUTES
from services.delivery.giving_up import GiveUps
from services.delivery.job_store import JobStore
from services.platform.errors import Unavailable
from services.platform.metrics import REGISTRY
from services.platform.postgres import Pool, transaction
from services.platform.settings import load
from services.windowing.announcements import BucketKey
from services.windowing.measurement_partitions import partition_of
from services.windowing.retention import MeasurementKeeper
from services.windowing.retention_queries import Retention, retentions
from services.windowing.settings import WindowingSettings
from services.windowing.status_queries import Standing
from services.windowing.store import WindowStore
from tests.integration.test_verification import store_all_offsets
from tests.support.closing import MINUTE, T0, TOPICS, UTILITIES, begin, close_all, seed_meters, store_versions, version
from tests.support.command import Meterpost

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MIDNIGHT = T0.replace(hour=0, minute=0)
KEEP: dict[int, timedelta | None] = {1: 2 * DAY, 5: 4 * DAY, 15: 40 * DAY, 60: None}
PARTITIONS = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = $1::text::regclass ORDER BY relname
"""
JOB = """
INSERT INTO export_job (job_id, organization_id, starts_at) OVERRIDING SYSTEM VALUE VALUES (7, 1, $1);
"""
VERSION = """
INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, frequency_minutes,
                                resolution_minutes, site_ids, transport, transport_settings)
VALUES (1, 7, 1, $1, 'Ones', 'meters_measurements', 15, 1, NULL, 'https', '{}')
"""
RUN = """
INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state)
VALUES (1, 7, $1::timestamptz, $1 + interval '15 minutes', 1, 1, $2)
"""
PROGRESS = """
INSERT INTO export_job_progress (organization_id, job_id, transport, destination, seen_version, next_slot_start,
                                 next_slot_end, next_resolution_minutes)
VALUES (1, 7, 'https', 'there', 1, $1::timestamptz, $1 + interval '15 minutes', 1)
"""


async def days_of(pool: Pool, resolution: int) -> list[str]:
    """Return the names of a resolution's partitions, without what they have in common."""
    parent = f"measurement_{resolution}m"
    return [row["relname"].removeprefix(f"{parent}_") for row in await pool.fetch(PARTITIONS, parent)]


async def rows_of(pool: Pool, resolution: int) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM measurement WHERE resolution_minutes = $1", resolution)
    return count


async def five_days(pool: Pool, url: str, *, registers: bool = False) -> None:
    """Close five days, in each of which two meters report twenty minutes at ten o'clock."""
    await seed_meters(url, UTILITIES)
    readings = [
        version(
            meter,
            T0 + day * DAY + minute * MINUTE,
            1000 + day * 100 + minute if registers and meter == 2 else minute,
            is_register=registers and meter == 2,
        )
        for day in range(5)
        for minute in range(20)
        for meter in (1, 2)
    ]
    await store_versions(url, readings)
    store = await begin(pool, url, T0 + 5 * DAY)
    await store_all_offsets(pool, 10_000_000)
    await close_all(store, MIDNIGHT + 5 * DAY)
    await pool.execute("UPDATE window_closed SET closed_until = $1", MIDNIGHT + 5 * DAY)


async def job(pool: Pool, starts_at: datetime) -> None:
    async with transaction(pool) as connection:
        await connection.execute(JOB, starts_at)
        await connection.execute(VERSION, starts_at)


async def retention_of(pool: Pool, resolution: int = 1) -> Retention:
    async with transaction(pool) as connection:
        return (await retentions(connection))[resolution]


def held_metric() -> float | None:
    return REGISTRY.get_sample_value("meterpost_measurement_partitions_held", {"resolution": "1"})


def test_what_the_settings_say_unless_told_otherwise() -> None:
    assert load(WindowingSettings).keep == {1: 92 * DAY, 5: 184 * DAY, 15: None, 60: None}
    told: dict[str, Any] = {"measurement_days_60m": 400, "measurement_days_1m": 0}
    assert WindowingSettings(**told).keep == {1: None, 5: 184 * DAY, 15: None, 60: 400 * DAY}


async def test_nothing_happens_before_the_first_window_was_closed(pool: Pool) -> None:
    assert not await MeasurementKeeper(pool, KEEP).look()
    assert [await days_of(pool, resolution) for resolution in RESOLUTIONS_MINUTES] == [[], [], [], []]


async def test_nobody_waits_for_a_partition_that_was_made_ahead(pool: Pool, database_url: str) -> None:
    """Whatever is done to the tables then, an ANALYZE, say, which shuts out all that changes them."""
    await five_days(pool, database_url)
    known: set[str] = set()
    await MeasurementKeeper(pool, KEEP, known).look()
    tomorrow = MIDNIGHT + 6 * DAY
    await store_versions(database_url, [version(1, tomorrow, 7)])
    await pool.execute("UPDATE ingest_progress SET watermark = $1", tomorrow + DAY)
    store = WindowStore(pool, load(WindowingSettings), TOPICS, known)
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE measurement_1m IN SHARE UPDATE EXCLUSIVE MODE")
            async with asyncio.timeout(10):
                assert await store.advance(BucketKey(1, 0), tomorrow + MINUTE) == tomorrow + MINUTE
    finally:
        await other.close()
    assert await pool.fetchval("SELECT pulses FROM measurement_1m WHERE window_start = $1", tomorrow) == 7


async def test_a_partition_that_is_gone_is_made_again_and_nothing_is_closed_without_it(
    pool: Pool, database_url: str
) -> None:
    await five_days(pool, database_url)
    tomorrow = MIDNIGHT + 6 * DAY
    await store_versions(database_url, [version(1, tomorrow, 7), version(1, tomorrow + MINUTE, 8)])
    await pool.execute("UPDATE ingest_progress SET watermark = $1", tomorrow + DAY)
    store = WindowStore(pool, load(WindowingSettings), TOPICS)
    assert await store.advance(BucketKey(1, 0), tomorrow + MINUTE) == tomorrow + MINUTE
    await pool.execute(f"DROP TABLE {partition_of(1, tomorrow).name}")
    with pytest.raises(Unavailable, match="no partition"):
        await store.advance(BucketKey(1, 0), tomorrow + 2 * MINUTE)
    assert await store.advance(BucketKey(1, 0), tomorrow + 2 * MINUTE) == tomorrow + 2 * MINUTE
    assert await pool.fetchval("SELECT array_agg(pulses) FROM measurement_1m WHERE window_start >= $1", tomorrow) == [8]


async def test_each_resolution_is_made_ahead_and_dropped_by_its_own_time(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    before = {resolution: await rows_of(pool, resolution) for resolution in RESOLUTIONS_MINUTES}
    proofs = await pool.fetchval("SELECT count(*) FROM window_closing")
    keeper = MeasurementKeeper(pool, KEEP)
    assert await keeper.look()
    ahead = ["20261125", "20261126", "20261127"]
    assert await days_of(pool, 1) == ["20261123", "20261124", *ahead]
    assert await days_of(pool, 5) == ["20261121", "20261122", "20261123", "20261124", *ahead]
    assert await days_of(pool, 15) == await days_of(pool, 60) == ["202611"]
    assert {resolution: await rows_of(pool, resolution) for resolution in RESOLUTIONS_MINUTES} == {
        1: before[1] * 2 // 5, 5: before[5] * 4 // 5, 15: before[15], 60: before[60],
    }  # fmt: skip
    assert await pool.fetchval("SELECT count(*) FROM window_closing") == proofs
    assert await retention_of(pool) == Retention(1, 2 * DAY, MIDNIGHT + 3 * DAY, None, 0, None)
    assert await retention_of(pool, 60) == Retention(60, None, None, None, 0, None)
    await keeper.look()
    assert await retention_of(pool) == Retention(1, 2 * DAY, MIDNIGHT + 3 * DAY, None, 0, None)
    # A month goes as a whole, once its last day is over.
    await pool.execute("UPDATE window_closed SET closed_until = $1", MIDNIGHT + 49 * DAY)
    await keeper.look()
    assert await days_of(pool, 15) == ["202611", "202701"]
    await pool.execute("UPDATE window_closed SET closed_until = $1", MIDNIGHT + 51 * DAY)
    await keeper.look()
    assert "202611" not in await days_of(pool, 15)
    assert await rows_of(pool, 60) == before[60]


async def test_what_is_kept_longer_from_now_on_does_not_come_back(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    await MeasurementKeeper(pool, KEEP).look()
    await MeasurementKeeper(pool, {**KEEP, 1: None}).look()
    assert await retention_of(pool) == Retention(1, None, MIDNIGHT + 3 * DAY, None, 0, None)


@pytest.mark.parametrize("state", ["planned", "frozen", "failed"])
async def test_a_run_that_is_not_delivered_holds_its_rows_and_all_after_them(
    pool: Pool, database_url: str, state: str
) -> None:
    await five_days(pool, database_url)
    await job(pool, T0)
    await pool.execute(PROGRESS, T0 + 4 * DAY)
    await pool.execute(RUN, T0 + DAY, state)
    keeper = MeasurementKeeper(pool, KEEP)
    await keeper.look()
    assert (await days_of(pool, 1))[:2] == ["20261121", "20261122"]
    assert await retention_of(pool) == Retention(1, 2 * DAY, MIDNIGHT + DAY, MIDNIGHT + DAY, 2, 7)
    assert held_metric() == 2
    assert (await days_of(pool, 5))[0] == "20261121", "another resolution is not held"
    await pool.execute("UPDATE export_run SET state = 'delivered'")
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261123"
    assert await retention_of(pool) == Retention(1, 2 * DAY, MIDNIGHT + 3 * DAY, None, 0, None)
    assert held_metric() == 0


async def test_slots_that_are_not_planned_yet_are_held_unless_they_will_be_skipped(
    pool: Pool, database_url: str
) -> None:
    await five_days(pool, database_url)
    await job(pool, T0 + DAY)
    keeper = MeasurementKeeper(pool, KEEP)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261121", "nobody has adopted the job yet, whose first slot is there"
    await pool.execute(PROGRESS, T0 + 2 * DAY)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261122", "its next slot is there, as where it is stopped"
    await pool.execute("INSERT INTO export_job_pause VALUES (1, 7, $1)", T0 + 2 * DAY + HOUR)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261122", "slots before the pause are still to be sent"
    await pool.execute("UPDATE export_job_pause SET paused_from = $1", T0 + 2 * DAY)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261123"


async def test_an_edit_to_another_resolution_holds_what_it_will_need(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    await job(pool, T0)
    await pool.execute(PROGRESS, T0)
    await pool.execute("UPDATE export_job_version SET resolution_minutes = 15")
    await pool.execute(
        "INSERT INTO export_job_version SELECT organization_id, job_id, 2, $1, name, data, 15, 1, site_ids, transport, "
        "transport_settings FROM export_job_version",
        T0 + 2 * DAY,
    )
    await MeasurementKeeper(pool, KEEP).look()
    assert (await days_of(pool, 1))[0] == "20261120"
    await pool.execute("UPDATE export_job_version SET resolution_minutes = 15")
    await MeasurementKeeper(pool, KEEP).look()
    assert (await days_of(pool, 1))[0] == "20261123"


async def test_what_a_failed_run_held_is_dropped_once_it_is_given_up(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    await job(pool, T0)
    await pool.execute(PROGRESS, T0 + 4 * DAY)
    for state, start in (("failed", T0), ("given_up", T0 + DAY), ("failed", T0 + 2 * DAY)):
        await pool.execute(RUN, start, state)
    keeper = MeasurementKeeper(pool, KEEP)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261120"
    asker = Asker("me@here", T0)
    await request_give_up(pool, 1, 7, T0, None, asker)
    await GiveUps(pool, "https").honour(T0)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261122", "the next failed run holds its rows"
    await request_give_up(pool, 1, 7, None, T0 + 3 * DAY, asker)
    await GiveUps(pool, "https").honour(T0)
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261123"
    assert await retention_of(pool) == Retention(1, 2 * DAY, MIDNIGHT + 3 * DAY, None, 0, None)


async def test_a_failed_run_of_which_rows_are_gone_holds_nothing(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    await MeasurementKeeper(pool, {**KEEP, 1: 4 * DAY}).look()
    await job(pool, T0)
    await pool.execute(PROGRESS, T0 + 4 * DAY)
    await pool.execute(RUN, T0, "failed")
    await MeasurementKeeper(pool, KEEP).look()
    assert (await days_of(pool, 1))[0] == "20261123"


@pytest.mark.parametrize("state", ["frozen", "failed"])
async def test_a_job_that_was_deleted_holds_nothing(pool: Pool, database_url: str, state: str) -> None:
    await five_days(pool, database_url)
    await job(pool, T0)
    await pool.execute(RUN, T0, state)
    await pool.execute("UPDATE export_job SET deleted_at = now()")
    await MeasurementKeeper(pool, KEEP).look()
    assert (await days_of(pool, 1))[0] == "20261123"


async def test_a_job_that_begins_before_what_is_kept_begins_with_what_is_kept(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    await MeasurementKeeper(pool, KEEP).look()
    opened = await JobStore(pool, "https", "me").opened_at()
    assert (opened[1], opened[60]) == (MIDNIGHT + 3 * DAY, T0)


async def test_dropping_never_waits_long_and_says_nothing_that_is_not_so(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    keeper = MeasurementKeeper(pool, KEEP)
    reader = await asyncpg.connect(database_url)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT count(*) FROM measurement")
            with pytest.raises(Unavailable, match="LockNotAvailable"):
                await keeper.look()
            assert (await days_of(pool, 1))[0] == "20261120"
            assert await pool.fetchval("SELECT dropped_until FROM measurement_retention") is None
    finally:
        await reader.close()
    await keeper.look()
    assert (await days_of(pool, 1))[0] == "20261123"


SPAN = ("--from", "2026-11-20T00:00:00Z", "--to", "2026-11-25T00:00:00Z")


async def test_every_command_says_that_rows_were_dropped_and_no_difference(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})
    await five_days(pool, database_url, registers=True)
    await MeasurementKeeper(pool, KEEP).look()
    # Days later the readings of the same register go on being proven, with nothing before to begin at.
    verified = meterpost("windows", "verify", *SPAN)
    assert verified.code == 0, verified.out
    assert "64 windows cannot be verified: their rows were dropped by retention" in verified.out
    answer = meterpost.json("windows", "verify", *SPAN)
    assert (answer["difference_count"], answer["unverifiable_windows"]) == (0, 0)
    assert answer["dropped_windows"] == 3 * 20 + 4
    assert answer["windows"] == 2 * 20 + 4 * 4 + 5 * 2 + 5
    at = ("--meter", "1", "--resolution", "1", "--start", "2026-11-20T10:05:00Z")
    assert "Its row was dropped by retention, as all before 2026-11-23T00:00:00Z" in meterpost.ok(
        "windows", "show", *at
    )
    assert meterpost.json("windows", "show", *at)["row"] is None
    complete = meterpost.json("windows", "completeness", *SPAN, "--resolution", "1")
    assert (complete["from"], complete["dropped_until"]) == ("2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z")
    said = meterpost.refused(
        "windows", "completeness", "--from", SPAN[1], "--to", "2026-11-21T00:00:00Z", "--resolution", "1"
    )
    assert "dropped by retention" in said
    late = meterpost("late", "list", *SPAN)
    assert "dropped by retention" in late.err + late.out


async def test_a_late_register_just_behind_what_was_dropped_begins_where_its_row_began(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    await five_days(pool, database_url, registers=True)
    await job(pool, T0 + 3 * DAY)
    await pool.execute(RUN, T0 + 3 * DAY, "delivered")
    await pool.execute("INSERT INTO site_description VALUES (1, '-infinity', 1, 'Depot', 'Europe/Berlin')")
    late = version(2, T0 + 3 * DAY, 1301, is_register=True, revision=1, arrived_at=T0 + 4 * DAY)
    await pool.execute(
        "UPDATE reading SET value = $1, revision = 1, arrived_at = $2 WHERE measured_at = $3 AND meter_id = 2",
        late.value,
        late.arrived_at,
        late.measured_at,
    )
    await pool.execute(PROGRESS, T0 + 4 * DAY)
    await MeasurementKeeper(pool, KEEP).look()
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})
    done = meterpost("late", "export", "--job", "7", *SPAN, "--output", "-")
    assert done.code == 0, done.err
    rows = [(row["MEASUREMENT_TIME(UTC)"], row["ENERGY(Wh)"]) for row in done.json["measurements"]]
    # From the last register of the day before, 1219, whose row is gone; then from 1301 to 1301.
    assert rows == [("2026-11-23T10:00:00Z", "20500.00"), ("2026-11-23T10:01:00Z", "0.00")]
    assert "dropped by retention" in done.err


def test_the_status_names_the_job_that_holds_rows(capsys: pytest.CaptureFixture[str]) -> None:
    standing = Standing(1, T0, T0 + DAY, T0 + DAY, 5 * MINUTE, None)
    retention = Retention(1, 2 * DAY, MIDNIGHT, MIDNIGHT + DAY, 3, 7)
    statuses = resolution_statuses([standing], {}, {1: retention})
    show_status(Answer(as_json=False), statuses, [], [], {}, None, [])
    said = capsys.readouterr().out
    assert "KEPT LONGER: rows of 1 minute from 2026-11-21T00:00:00Z on are older than 2 days" in said
    assert "runs of job 7 still need them (3 partitions held)" in said
    show_status(Answer(as_json=True), statuses, [], [], {}, None, [])
    [told] = json.loads(capsys.readouterr().out)["resolutions"]
    assert (told["retention"]["keep_days"], told["retention"]["held_by_job_id"]) == (2, 7)
