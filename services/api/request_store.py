"""The only SQL that asks delivery for something beside the schedule: run now, retry, resend, give up and the like.

A request is a row that delivery sees within seconds. What cannot be done is refused here, with a sentence, as far as it
can be known here.
"""

from datetime import datetime
from typing import NamedTuple

from services.api.catalog_queries import AnyConnection
from services.api.job_queries import Job
from services.api.job_store import lift_stop, locked_job
from services.api.run_queries import Run, find_run
from services.core.giving_up import FAILED, GIVEN_UP, why_not
from services.core.parts import run_id
from services.core.plurals import counted
from services.core.times import iso_seconds
from services.platform.errors import UserError
from services.platform.kept_rows import dropped_of_run
from services.platform.postgres import Connection, Pool, transaction

_HAS_FAILED = """
SELECT EXISTS (SELECT FROM export_run WHERE organization_id = $1 AND job_id = $2 AND slot_end <= $3
               AND state IN ('failed', 'given_up'))
"""


class RequestState(NamedTuple):
    """What became of a request; `done_at` None: delivery has not come to it, or is at it."""

    request_id: int
    kind: str
    requested_at: datetime
    requested_by: str
    run_count: int
    done_at: datetime | None
    outcome: str


class Asker(NamedTuple):
    """Who asks, and when (wall clock)."""

    name: str
    at: datetime


async def request_run_now(pool: Pool | Connection, organization_id: int, job_id: int, asker: Asker) -> int:
    """Ask that the job's next slot ends at the last closed window; return the request's id. Raises UserError."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        _must_run(job, "run now")
        return await _add(connection, job, "run_now", asker)


async def request_retry(
    pool: Pool | Connection, organization_id: int, job_id: int, slot_start: datetime | None, asker: Asker
) -> int:
    """Ask that a run's waiting parts, or those of all runs, are tried at once; a stop is lifted. Raises UserError."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        if slot_start is not None:
            run = await _run_in(connection, job, slot_start, {FAILED, GIVEN_UP, "frozen", "planned"}, "tried again")
            if run == "planned":
                raise UserError("the run waits for the runs before it; they are sent first")
            if run in {FAILED, GIVEN_UP}:
                await _must_be_kept(connection, job, slot_start, "tried again")
        await lift_stop(connection, organization_id, job_id, asker.at)
        return await _add(connection, job, "retry", asker, slot_start=slot_start)


async def request_recover(pool: Pool | Connection, organization_id: int, job_id: int, asker: Asker) -> int:
    """Ask that a job that was paused by failures goes on, and that its failed runs are sent. Raises UserError."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        failed = await connection.fetchval(
            "SELECT count(*) FROM export_run WHERE organization_id = $1 AND job_id = $2 AND state = 'failed'",
            organization_id,
            job_id,
        )
        if job.stopped_at is None and not failed:
            raise UserError(f"job {job_id} is neither stopped nor has it runs that failed: nothing is missing")
        await lift_stop(connection, organization_id, job_id, asker.at)
        return await _add(connection, job, "recover", asker)


async def request_resend(
    pool: Pool | Connection, organization_id: int, job_id: int, slot_start: datetime, asker: Asker
) -> int:
    """Ask that a delivered run is sent once more, the same bytes under the same ids. Raises UserError."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        await _run_in(connection, job, slot_start, {"delivered"}, "sent again")
        await _must_be_kept(connection, job, slot_start, "sent again")
        _must_run(job, "resend")
        return await _add(connection, job, "resend", asker, slot_start=slot_start)


async def request_backfill(
    pool: Pool | Connection, organization_id: int, job_id: int, start: datetime, end: datetime, asker: Asker
) -> int:
    """Ask for runs of the past slots from `start` to `end` that the job has none for. Raises UserError."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        _must_run(job, "backfill")
        if start >= end:
            raise UserError(f"the range must begin before it ends: {iso_seconds(start)} to {iso_seconds(end)}")
        if job.next_slot_start is None:
            raise UserError(f"job {job_id} has not begun yet; give it an earlier start instead (`jobs create --start`)")
        if start >= job.next_slot_start:
            raise UserError(
                f"the job sends everything from {iso_seconds(job.next_slot_start)} on by itself; a backfill is for "
                "what lies before"
            )
        return await _add(connection, job, "backfill", asker, between=(start, min(end, job.next_slot_start)))


async def request_give_up(
    pool: Pool | Connection,
    organization_id: int,
    job_id: int,
    slot_start: datetime | None,
    until: datetime | None,
    asker: Asker,
) -> int:
    """Ask that a failed run is given up or, with `until` instead, those of the slots that end by then.

    To ask once more changes nothing. Raises UserError.
    """
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        if slot_start is not None:
            refusal = why_not((await _run(connection, job, slot_start)).state)
            if refusal is not None:
                raise UserError(f"the run {run_id(job_id, slot_start)} {refusal}")
        elif until is not None and not await connection.fetchval(_HAS_FAILED, organization_id, job_id, until):
            raise UserError(f"job {job_id} has no failed run of a slot that ends by {iso_seconds(until)}")
        return await _add(connection, job, "give_up", asker, slot_start=slot_start, between=(None, until))


async def list_requests(connection: AnyConnection, organization_id: int, job_id: int, limit: int) -> list[RequestState]:
    """Return the newest requests of a job."""
    rows = await connection.fetch(
        """
        SELECT q.request_id, q.kind, q.requested_at, q.requested_by, coalesce(a.run_count, 0), a.done_at,
               coalesce(a.outcome, 'waits for delivery')
        FROM export_request q LEFT JOIN export_request_result a USING (organization_id, job_id, request_id)
        WHERE q.organization_id = $1 AND q.job_id = $2 ORDER BY q.request_id DESC LIMIT $3
        """,
        organization_id,
        job_id,
        limit,
    )
    return [RequestState(*row) for row in rows]


def _must_run(job: Job, what: str) -> None:
    if job.stopped_at is not None:
        remedy = "recover" if job.state == "paused by failures" else "resume"
        raise UserError(
            f"job {job.job_id} is stopped ({job.stopped_reason}), so a {what} would not be sent: mend the cause, then "
            f"`meterpost jobs {remedy} {job.job_id}`"
        )
    if job.paused_from is not None and what == "run now":
        raise UserError(f"job {job.job_id} is paused: `meterpost jobs resume {job.job_id}` first")


async def _run_in(connection: Connection, job: Job, slot_start: datetime, states: set[str], what: str) -> str:
    run = await _run(connection, job, slot_start)
    if run.state == GIVEN_UP and GIVEN_UP not in states:
        raise UserError(
            f"the run {run.run_id} was given up, so it cannot be {what}; while its rows are kept, "
            f"`meterpost runs retry {run.run_id}` sends it after all"
        )
    if run.state not in states:
        raise UserError(f"the run {run.run_id} is {run.state}, so it cannot be {what}")
    return run.state


async def _run(connection: Connection, job: Job, slot_start: datetime) -> Run:
    run = await find_run(connection, job.organization_id, job.job_id, slot_start)
    if run is None:
        name = run_id(job.job_id, slot_start)
        raise UserError(f"there is no run {name}; `meterpost runs list` shows those there are")
    return run


async def _must_be_kept(connection: Connection, job: Job, slot_start: datetime, what: str) -> None:
    """Refuse a run of which rows are gone already; delivery looks once more, when nothing can be dropped meanwhile."""
    dropped = await dropped_of_run(connection, job.organization_id, job.job_id, slot_start)
    if dropped is not None:
        raise UserError(
            f"the run {run_id(job.job_id, slot_start)} cannot be {what}: rows of "
            f"{counted(dropped.resolution_minutes, 'minute')} before {iso_seconds(dropped.dropped_until)} were dropped "
            "by retention, its own among them"
        )


async def _add(
    connection: Connection,
    job: Job,
    kind: str,
    asker: Asker,
    *,
    slot_start: datetime | None = None,
    between: tuple[datetime | None, datetime | None] = (None, None),
) -> int:
    request_id: int = await connection.fetchval(
        """
        INSERT INTO export_request (organization_id, job_id, kind, slot_start, range_start, range_end, requested_at,
                                    requested_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING request_id
        """,
        job.organization_id,
        job.job_id,
        kind,
        slot_start,
        *between,
        asker.at,
        asker.name,
    )
    return request_id
