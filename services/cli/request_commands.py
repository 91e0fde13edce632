"""What is asked of delivery beside the schedule: `runs run-now|retry|resend|give-up`, `jobs backfill|recover`."""

from datetime import datetime
from typing import Annotated

import typer

from services.api.job_queries import find_job
from services.api.request_store import (
    Asker,
    RequestState,
    list_requests,
    request_backfill,
    request_give_up,
    request_recover,
    request_resend,
    request_retry,
    request_run_now,
)
from services.api.run_queries import parse_run_id
from services.cli import api_runs
from services.cli.api_session import Api
from services.cli.operator import operator_name
from services.cli.session import Session, command, wall_clock
from services.cli.show import Column, utc
from services.core.times import parse_instant
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction

jobs, runs = typer.Typer(), typer.Typer()
"""Commands that stand beside those of the same groups elsewhere."""

_DATABASE = ("organization", "database", "as_json")
_COLUMNS = (
    Column("Request", number=True),
    Column("Kind", whole=True),
    Column("Asked at", whole=True),
    Column("By"),
    Column("Runs", number=True),
    Column("Done at", whole=True),
    Column("Outcome"),
)
JobArgument = Annotated[int, typer.Argument(metavar="JOB", help="The job's id, as `jobs list` shows it.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="As `runs list` names it: job3-20261120T100000Z")]


@command(runs, "run-now", *_DATABASE, over_api=api_runs.run_now)
async def run_now(session: Session, job_id: JobArgument) -> None:
    """Send what is closed of a job's present slot now; the rest of the slot makes a shorter run later.

    So nothing is sent twice, and nothing is left out.
    """
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        request_id = await request_run_now(pool, organization_id, job_id, _asker())
    _told(session, job_id, request_id, "The present slot of job {job} ends with what is closed now, and is sent.")


@command(runs, "retry", *_DATABASE, over_api=api_runs.retry)
async def retry(
    session: Session,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="As `runs list` names it.")] = None,
    *,
    job: Annotated[
        int | None, typer.Option("--job", metavar="ID", help="Everything of this job instead.", show_default=False)
    ] = None,
) -> None:
    """Try a run's parts that wait or failed again at once; where the job is stopped, this resumes it."""
    if (run is None) == (job is None):
        raise UserError("say what to try again: a RUN, or all of a job by --job ID")
    job_id, slot_start = (job, None) if run is None else _run(run)
    if job_id is None:
        raise UserError("say what to try again: a RUN, or all of a job by --job ID")
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        request_id = await request_retry(pool, organization_id, job_id, slot_start, _asker())
    _told(session, job_id, request_id, "The parts that wait are tried again at once.")


@command(runs, "resend", *_DATABASE, over_api=api_runs.resend)
async def resend(session: Session, run: RunArgument) -> None:
    """Send a delivered run again: the same bytes under the same ids, so a receiver that has it may ignore it."""
    job_id, slot_start = _run(run)
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        request_id = await request_resend(pool, organization_id, job_id, slot_start, _asker())
    _told(session, job_id, request_id, f"The run {run} is sent again.")


@command(runs, "give-up", *_DATABASE, over_api=api_runs.give_up)
async def give_up(
    session: Session,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="As `runs list` names it.")] = None,
    *,
    job: Annotated[
        int | None, typer.Option("--job", metavar="ID", help="Failed runs of this job instead.", show_default=False)
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="TIME", help="With --job: of slots that end by then; platform's clock.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Give up a failed run that nobody wants any more: it is not sent, and its rows are no longer kept for it.

    Until its rows are dropped, `runs retry RUN` still sends it. The job's other runs go on as they were.
    """
    job_id, slot_start, until = api_runs.to_give_up(run, job, before)
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        request_id = await request_give_up(pool, organization_id, job_id, slot_start, until, _asker())
    _told(session, job_id, request_id, api_runs.GIVEN_UP_SENTENCE)


@command(jobs, "backfill", *_DATABASE, over_api=api_runs.backfill)
async def backfill(
    session: Session,
    job_id: JobArgument,
    *,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="Slots from here on; platform's clock.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Up to here; platform's clock.")],
) -> None:
    """Send past slots through a job: those before its first one, and those that a pause skipped.

    What the job has sent already is not sent again. Older slots go first, so newer ones wait until they are through.
    """
    between = _time(start, "--from"), _time(end, "--to")
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        request_id = await request_backfill(pool, organization_id, job_id, *between, _asker())
    _told(session, job_id, request_id, f"The slots from {utc(between[0])} to {utc(between[1])} are sent.")


@command(jobs, "recover", *_DATABASE, over_api=api_runs.recover)
async def recover(session: Session, job_id: JobArgument) -> None:
    """Let a job that was paused by failures go on, and send what it missed: the failed runs too, the oldest first."""
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        request_id = await request_recover(pool, organization_id, job_id, _asker())
    _told(session, job_id, request_id, "What job {job} missed is sent, the oldest first.")


async def _requests_over_api(session: Session, api: Api, job_id: int, *, limit: int) -> None:
    _show_requests(session, job_id, await api_runs.requests(api, job_id, limit))


@command(jobs, "requests", *_DATABASE, over_api=_requests_over_api)
async def requests(
    session: Session, job_id: JobArgument, *, limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20
) -> None:
    """List what was asked of a job beside its schedule, and what became of it."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        await find_job(connection, organization.organization_id, job_id)
        found = await list_requests(connection, organization.organization_id, job_id, limit)
    _show_requests(session, job_id, found)


def _show_requests(session: Session, job_id: int, found: list[RequestState]) -> None:
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "requests": [one._asdict() for one in found]})
    elif not found:
        session.answer.say(f"Nothing was asked of job {job_id} beside its schedule.")
    else:
        session.answer.table(
            _COLUMNS,
            [
                (
                    one.request_id,
                    one.kind,
                    one.requested_at,
                    one.requested_by,
                    one.run_count,
                    one.done_at,
                    one.outcome,
                )
                for one in found
            ],
        )


def _told(session: Session, job_id: int, request_id: int, sentence: str) -> None:
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "request_id": request_id})
    else:
        followed = f"`meterpost jobs requests {job_id}` shows what becomes of it."
        session.answer.say(f"{sentence.format(job=job_id)} {followed}")


def _asker() -> Asker:
    return Asker(operator_name(), wall_clock().now())


async def _organization_id(session: Session, pool: Pool) -> int:
    async with transaction(pool) as connection:
        return (await session.organization(connection)).organization_id


def _run(text: str) -> tuple[int, datetime]:
    try:
        return parse_run_id(text)
    except ValueError as error:
        raise UserError(str(error)) from None


def _time(text: str, option: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
