"""`meterpost windows completeness`: which meters were silent or partial."""

from datetime import timedelta
from typing import Annotated

import typer

from services.api.completeness_queries import (
    CompletenessTotals,
    closed_span,
    completeness_of,
    meters_that_report_less_often,
    totals_of,
)
from services.cli import choosing
from services.cli.session import Session, command
from services.cli.show import Column, utc
from services.cli.windows import app
from services.core.plurals import counted
from services.core.times import ceil_to
from services.platform.errors import UserError
from services.platform.postgres import transaction

_COLUMNS = (
    Column("Meter"),
    Column("Site"),
    Column("State", whole=True),
    Column("Intervals present", number=True),
    Column("expected", number=True),
    Column("Windows with a row", number=True),
    Column("of", number=True),
    Column("Last row", whole=True),
)


@command(app, "completeness", "organization", "database", "as_json")
async def completeness(
    session: Session,
    *,
    from_: choosing.From = None,
    to: choosing.To = None,
    site: choosing.Site = None,
    resolution: Annotated[int, typer.Option(metavar="MINUTES", help="Of windows of this resolution.")] = 60,
    all_: Annotated[bool, typer.Option("--all", help="List the complete meters, too.")] = False,
    limit: choosing.Limit = 50,
) -> None:
    """List silent meters (no row at all) and partial ones, with the intervals that came and that were to come.

    A meter is to report in a window while it is configured and attached to a device, once each interval of its cadence.
    Of one that reports less often than the resolution nothing is expected; how many there are is told. Only closed
    windows count.
    """
    minutes = choosing.resolution_of(resolution)
    step = timedelta(minutes=minutes)
    start, end = (ceil_to(instant, step) for instant in choosing.span(from_, to))
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        site_id = await choosing.site_id(connection, organization.organization_id, site)
        closed = await closed_span(connection, minutes)
        if closed is None:
            raise UserError("no window was ever closed: windows open with the first reading")
        opened_at, closed_until, dropped_until = closed
        asked = (start, end)
        start, end = max(start, opened_at), min(end, closed_until)
        if dropped_until is not None and start < dropped_until:
            if end <= dropped_until:
                raise UserError(
                    f"the rows of {counted(minutes, 'minute')} before {utc(dropped_until)} were dropped by retention: "
                    "nobody can tell any more which meters were silent then. Runs keep their counts (`meterpost runs "
                    "show`)"
                )
            start = dropped_until
        if start >= end:
            raise UserError(
                f"no window of {counted(minutes, 'minute')} is closed there; those that start from {utc(opened_at)} "
                f"to before {utc(closed_until)} are"
            )
        wanted = organization.organization_id, minutes, start, end, site_id
        meters = await completeness_of(connection, *wanted)
        less_often = await meters_that_report_less_often(connection, *wanted)
    totals = totals_of(meters)
    listed = [meter for meter in meters if all_ or meter.state != "complete"]
    shown = listed[: choosing.limit_of(limit)]
    if session.answer.as_json:
        session.answer.json(
            {
                "organization": organization.name,
                "resolution_minutes": minutes,
                "from": start,
                "to": end,
                "dropped_until": dropped_until,
                "totals": totals._asdict(),
                "less_often_meter_ids": less_often,
                "meters": [{**meter._asdict(), "state": meter.state} for meter in shown],
            }
        )
        return
    if (start, end) != asked:
        span = f"only windows that start from {utc(start)} to before {utc(end)} are closed"
        session.answer.note(f"{span}; rows before were dropped by retention" if start == dropped_until else span)
    if shown:
        session.answer.table(
            _COLUMNS,
            [
                (
                    f"{meter.meter_id} {meter.meter_name}",
                    meter.site_name,
                    meter.state,
                    meter.intervals_present,
                    meter.intervals_expected,
                    meter.windows_present,
                    meter.windows,
                    meter.last_window_start,
                )
                for meter in shown
            ],
        )
    if len(shown) < len(listed):
        session.answer.note(f"the first {len(shown):,} of {len(listed):,} are shown; --limit 0 shows all")
    session.answer.say(_sentence(totals))
    if less_often:
        session.answer.say(_sentence_about(len(less_often), minutes))


def _sentence(totals: CompletenessTotals) -> str:
    missing = totals.intervals_expected - totals.intervals_present
    return (
        f"{counted(totals.meters, 'meter')}: {totals.silent:,} silent, {totals.partial:,} partial. Intervals: "
        f"{totals.intervals_present:,} of {totals.intervals_expected:,} expected, {missing:,} missing."
    )


def _sentence_about(less_often: int, minutes: int) -> str:
    who = "1 meter reports" if less_often == 1 else f"{less_often:,} meters report"
    every = "minute" if minutes == 1 else f"{minutes} minutes"
    return (
        f"{who} less often than every {every}, by the cadence configured, in some or all of these windows: nothing "
        "was expected then. A reading longer than a window is not in it, and no job of this resolution delivers it."
    )
