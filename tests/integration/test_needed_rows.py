"""Retention and those who begin to need rows never pass each other unseen. On a real PostgreSQL."""

import asyncio
from datetime import datetime, timedelta

import asyncpg

from services.core.schedule import Slot
from services.delivery.backfill import fill
from services.delivery.job_store import Adopted, JobStore
from services.delivery.model import Claim, JobKey, Request
from services.delivery.planning import first_plan
from services.delivery.request_store import RequestStore
from services.platform.clock import SystemClock
from services.platform.kept_rows import judge_needs, need_rows
from services.platform.postgres import Pool, transaction
from services.windowing.retention import MeasurementKeeper
from tests.integration.test_measurement_retention import (
    DAY,
    HOUR,
    KEEP,
    MIDNIGHT,
    PROGRESS,
    days_of,
    five_days,
    job,
    rows_of,
)
from tests.support.closing import T0
from tests.support.polling import eventually_async

FIRST_KEPT = MIDNIGHT + 3 * DAY
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = $1 AND mode = $2"


async def waits(pool: Pool, mode: str, locktype: str = "advisory") -> None:
    """Return once somebody waits for such a lock."""

    async def is_waiting() -> bool:
        return bool(await pool.fetchval(WAITING, locktype, mode))

    await eventually_async(is_waiting)


async def adopt(jobs: JobStore, opened: dict[int, datetime]) -> int:
    """Do what delivery does with new jobs, by what it knew of the rows that are kept."""
    adopted = []
    for new in await jobs.new_jobs():
        first = first_plan(new.starts_at, opened, new.versions)
        assert first is not None
        adopted.append(Adopted(new, first, "there"))
    return await jobs.adopt(adopted)


async def test_a_job_planned_by_what_was_kept_before_a_drop_begins_where_rows_are(
    pool: Pool, database_url: str
) -> None:
    await five_days(pool, database_url)
    jobs = JobStore(pool, "https", "me")
    opened = await jobs.opened_at()
    await MeasurementKeeper(pool, KEEP).look()
    await job(pool, T0)  # which retention did not see
    assert await adopt(jobs, opened) == 0
    assert await pool.fetchval("SELECT count(*) FROM export_job_progress") == 0
    assert await adopt(jobs, await jobs.opened_at()) == 1
    assert await pool.fetchval("SELECT next_slot_start FROM export_job_progress") == FIRST_KEPT


async def test_dropping_waits_for_a_job_that_is_being_adopted_and_keeps_its_rows(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    rows = await rows_of(pool, 1)
    async with transaction(pool) as adopting:
        assert await need_rows(adopting) == {}
        looking = asyncio.create_task(MeasurementKeeper(pool, KEEP).look())
        await waits(pool, "ExclusiveLock")
        await job(pool, T0)
        await adopting.execute(PROGRESS, T0)
    await looking
    assert (await days_of(pool, 1))[0] == "20261120"
    assert await rows_of(pool, 1) == rows


async def test_who_begins_to_need_rows_waits_for_the_drop_and_hears_of_it(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)

    async def needed() -> dict[int, datetime]:
        async with transaction(pool) as connection:
            return await need_rows(connection)

    async with transaction(pool) as dropping:
        await judge_needs(dropping)
        asking = asyncio.create_task(needed())
        await waits(pool, "ShareLock")
        await dropping.execute("INSERT INTO measurement_retention VALUES (1, '2 days', $1)", FIRST_KEPT)
    assert await asking == {1: FIRST_KEPT}


async def backfilled(pool: Pool, asked: Slot) -> tuple[JobStore, Claim, Request]:
    """Ask for a backfill of a job that is under way, and claim the job."""
    await job(pool, MIDNIGHT + 4 * DAY)
    await pool.execute(PROGRESS, MIDNIGHT + 5 * DAY)
    await pool.execute("UPDATE export_job_progress SET next_attempt_at = now()")
    request_id = await pool.fetchval(
        "INSERT INTO export_request (organization_id, job_id, kind, range_start, range_end, requested_by) "
        "VALUES (1, 7, 'backfill', $1, $2, 'me') RETURNING request_id",
        *asked,
    )
    jobs = JobStore(pool, "https", "me")
    claim = await jobs.claim(SystemClock().now() + HOUR, HOUR)
    assert claim is not None
    assert claim.job == JobKey(1, 7)
    return jobs, claim, Request(request_id, "backfill", None, *asked, None)


async def test_a_backfill_planned_before_a_drop_adds_no_run_without_rows(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    asked = Slot(T0, T0 + 4 * DAY)
    jobs, claim, request = await backfilled(pool, asked)
    # A pause had skipped the first slot: its run would come back to life.
    await pool.execute(
        "INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state) "
        "VALUES (1, 7, $1::timestamptz, $1 + interval '15 minutes', 1, 1, 'skipped')",
        T0,
    )
    store = RequestStore(pool)
    now = SystemClock().now()
    versions = (await jobs.load(claim)).versions

    async def backfill(kept_from: dict[int, datetime]) -> bool:
        filling = fill(asked, await store.taken(claim, asked), versions, 10_000, None, kept_from)
        return await store.backfill(claim, request, asked, filling, kept_from, now)

    before = await jobs.opened_at()
    await MeasurementKeeper(pool, KEEP).look()
    assert not await backfill(before)
    assert await pool.fetchval("SELECT array_agg(state) FROM export_run") == ["skipped"]
    assert await backfill(await jobs.opened_at())
    states = "SELECT state, min(slot_start), count(*) FROM export_run GROUP BY state ORDER BY state"
    planned, skipped = await pool.fetch(states)
    assert tuple(planned) == ("planned", FIRST_KEPT, (asked.end - FIRST_KEPT) / timedelta(minutes=15))
    assert tuple(skipped) == ("skipped", T0, 1)


async def test_dropping_waits_for_a_backfill_that_is_being_added(pool: Pool, database_url: str) -> None:
    await five_days(pool, database_url)
    asked = Slot(T0, T0 + HOUR)
    jobs, claim, request = await backfilled(pool, asked)
    opened = await jobs.opened_at()
    filling = fill(asked, [], (await jobs.load(claim)).versions, 10_000, None, opened)
    # Held at its last step, with the runs added and nothing committed.
    holder = await asyncpg.connect(database_url)
    try:
        hold = holder.transaction()
        await hold.start()
        await holder.execute("LOCK TABLE export_request_result IN ACCESS EXCLUSIVE MODE")
        adding = asyncio.create_task(
            RequestStore(pool).backfill(claim, request, asked, filling, opened, SystemClock().now())
        )
        await waits(pool, "RowExclusiveLock", "relation")
        looking = asyncio.create_task(MeasurementKeeper(pool, KEEP).look())
        await waits(pool, "ExclusiveLock")
        await hold.rollback()
    finally:
        await holder.close()
    assert await adding
    await looking
    assert (await days_of(pool, 1))[0] == "20261120"
