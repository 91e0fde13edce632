"""`meterpost runs`: what was sent when, in which parts, and what the receiver answered."""

from collections.abc import Sequence
from typing import Annotated

import typer

from services.api.run_queries import (
    RUN_STATES,
    Attempt,
    Part,
    Run,
    attempts_of,
    find_run,
    list_runs,
    parse_run_id,
    parts_of,
    with_intervals,
)
from services.cli import api_runs
from services.cli.api_session import Api
from services.cli.session import Session, command
from services.cli.show import Column, utc
from services.core.plurals import counted
from services.platform.errors import UserError
from services.platform.postgres import transaction

app = typer.Typer(no_args_is_help=True, help="Runs: what was sent when, and what the receiver answered.")

_DATABASE = ("organization", "database", "as_json")
_RUNS = (
    Column("Run", whole=True),
    Column("State", whole=True),
    Column("Rows", number=True),
    Column("Parts", number=True),
    Column("Complete", number=True),
    Column("Finished", whole=True),
    Column("Note", whole=True),
)
_PARTS = (
    Column("Part", number=True),
    Column("State", whole=True),
    Column("Rows", number=True),
    Column("Bytes", number=True),
    Column("SHA-256", whole=True),
    Column("Tries", number=True),
    Column("Sent, or next try", whole=True),
)
_ATTEMPTS = (
    Column("Part", number=True),
    Column("Try", number=True),
    Column("Started", whole=True),
    Column("Took", number=True),
    Column("Outcome", whole=True),
    Column("The receiver's answer"),
)


async def _list_over_api(session: Session, api: Api, *, job: int | None, state: str | None, limit: int) -> None:
    runs = await api_runs.runs(api, job, state, limit)
    _show_list(session, await api_runs.organization_name(api), runs)


async def _show_over_api(session: Session, api: Api, run: str) -> None:
    _show_run(session, *await api_runs.run(api, run))


@command(app, "list", *_DATABASE, over_api=_list_over_api)
async def list_(
    session: Session,
    *,
    job: Annotated[
        int | None, typer.Option("--job", metavar="ID", help="Only of this job.", show_default=False)
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help=f"Only {', '.join(RUN_STATES)}.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """List runs, the newest slots first."""
    if state is not None and state not in RUN_STATES:
        raise UserError(f"no run is ever {state!r}; states: {', '.join(RUN_STATES)}")
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        runs = await list_runs(connection, organization.organization_id, job_id=job, state=state, limit=limit)
    _show_list(session, organization.name, runs)


def _show_list(session: Session, organization: str, runs: list[Run]) -> None:
    if session.answer.as_json:
        listed = [{"run": run.run_id, **run._asdict()} for run in runs]
        session.answer.json({"organization": organization, "runs": listed})
    elif not runs:
        session.answer.say("There is no such run yet. A slot's run comes when all its windows are closed.")
    else:
        rows = [
            (
                run.run_id,
                run.state,
                run.row_count,
                run.part_count,
                _share(run),
                run.finished_at,
                "forced" if run.is_forced else "",
            )
            for run in runs
        ]
        session.answer.table(_RUNS, rows, title=f"Runs of {organization}")


@command(app, "show", *_DATABASE, over_api=_show_over_api)
async def show(
    session: Session,
    run: Annotated[str, typer.Argument(metavar="RUN", help="As `runs list` names it: job3-20261120T100000Z")],
) -> None:
    """Show a run's parts, and each attempt with the receiver's answer."""
    try:
        job_id, slot_start = parse_run_id(run)
    except ValueError as error:
        raise UserError(str(error)) from None
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        found = await find_run(connection, organization.organization_id, job_id, slot_start)
        if found is None:
            raise UserError(f"there is no run {run}; `meterpost runs list` shows those there are")
        found = await with_intervals(connection, organization.organization_id, found)
        parts = await parts_of(connection, organization.organization_id, found)
        attempts = await attempts_of(connection, organization.organization_id, found)
    _show_run(session, found, parts, attempts)


def _show_run(session: Session, found: Run, parts: Sequence[Part], attempts: Sequence[Attempt]) -> None:
    if session.answer.as_json:
        listed = [
            part._asdict() | {"attempts": [one._asdict() for one in attempts if one.part == part.part]}
            for part in parts
        ]
        session.answer.json({"run": found.run_id, **found._asdict(), "parts": listed})
        return
    again = f", sent again {counted(found.resend_count, 'time')}" if found.resend_count else ""
    content = f"{counted(found.row_count, 'row')} in {counted(found.part_count, 'part')}"
    session.answer.say(
        f"{found.run_id}: {found.state}. Slot {utc(found.slot_start)} to {utc(found.slot_end)} of job {found.job_id} "
        f"{found.job_name!r} (version {found.job_version}): {content}{again}."
    )
    if found.intervals_expected == 0:
        session.answer.say("Intervals: none was expected (`meterpost windows completeness` shows why).")
    elif found.intervals_expected is not None:
        session.answer.say(
            f"Intervals: {found.intervals_present:,} of {found.intervals_expected:,} expected ({_share(found)}); "
            f"silent meters: {found.silent_meter_count:,}."
        )
    if found.is_forced:
        session.answer.say(
            "FORCED: an operator had some of its windows closed before everything was stored. "
            f"`meterpost late list --run {found.run_id}` shows what it missed by that."
        )
    if parts:
        rows = [
            (
                "manifest" if part.is_manifest else str(part.part),
                part.state,
                part.row_count,
                part.byte_count,
                part.sha256.hex()[:10] + "…",
                part.attempt_count,
                part.delivered_at or part.next_attempt_at,
            )
            for part in parts
        ]
        session.answer.table(_PARTS, rows)
    if attempts:
        answers = [
            (
                one.part,
                one.attempt,
                one.started_at,
                f"{(one.finished_at - one.started_at).total_seconds():.2f} s",
                one.outcome,
                f"{one.reason}: {one.detail}" if one.detail else one.reason,
            )
            for one in attempts
        ]
        session.answer.table(_ATTEMPTS, answers)


def _share(run: Run) -> str | None:
    """Return how much of what was expected is there, if anything was; rounded down, so that 100 % is everything."""
    if not run.intervals_expected or run.intervals_present is None:
        return None
    tenths = run.intervals_present * 1000 // run.intervals_expected
    return f"{tenths // 10}.{tenths % 10} %" if tenths % 10 else f"{tenths // 10} %"
