"""`meterpost readings as-of`: what was known of a meter's readings at an instant."""

from typing import Annotated

import typer

from services.cli import choosing
from services.cli.reading_commands import app
from services.cli.session import Session, command
from services.cli.show import Column, utc
from services.platform.postgres import transaction
from services.windowing.as_of_queries import readings_as_of, versions_kept_from

_COLUMNS = (
    Column("Reading", whole=True),
    Column("Min", number=True),
    Column("Value", number=True),
    Column("Kind", whole=True),
    Column("Revision", number=True),
    Column("Arrived", whole=True),
    Column("Since then", whole=True),
)


@command(app, "as-of", "organization", "database", "as_json")
async def as_of(
    session: Session,
    *,
    at: Annotated[
        str, typer.Option(metavar="TIME", help="As known when everything up to this had arrived.", show_default=False)
    ],
    meter: Annotated[int, typer.Option(metavar="ID", help="The meter.", show_default=False)],
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Intervals from here on.", show_default=False)
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Intervals before this.", show_default=False)
    ] = None,
    limit: choosing.Limit = 50,
) -> None:
    """Show a meter's readings as they were known at an instant: of each the newest version that had arrived by then.

    With a window's cut-off for TIME, these are the readings that the window was closed from.
    """
    start, end = choosing.span(from_, to)
    known_at = choosing.instant(at, "--at")
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        await choosing.check_meter(connection, organization, meter)
        kept_from = await versions_kept_from(connection)
        readings = await readings_as_of(connection, known_at, start, end, meter)
    is_cut = kept_from is None or start < kept_from
    shown = readings[: choosing.limit_of(limit)]
    if session.answer.as_json:
        session.answer.json(
            {
                "meter_id": meter,
                "known_at": known_at,
                "from": start,
                "to": end,
                "versions_kept_from": kept_from,
                "count": len(readings),
                "readings": [one._asdict() for one in shown],
            }
        )
        return
    if shown:
        session.answer.table(
            _COLUMNS,
            [
                (
                    one.measured_at,
                    one.interval_minutes,
                    one.value,
                    "register" if one.is_register else "pulses",
                    one.revision,
                    utc(one.arrived_at),
                    "the newest still" if one.is_newest else "another version counts now",
                )
                for one in shown
            ],
        )
    session.answer.say(f"{len(readings):,} readings of meter {meter} were known at {utc(known_at)}.")
    if len(shown) < len(readings):
        session.answer.note(f"the first {len(shown):,} are shown; --limit 0 shows all")
    if is_cut:
        since = "none are kept" if kept_from is None else f"those from {utc(kept_from)} on are"
        session.answer.note(f"not all that was known there is kept: {since}")
