"""`meterpost windows events`: what was odd about single meters' windows."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from services.cli import choosing
from services.cli.session import Session, command
from services.cli.show import Column
from services.cli.window_options import From, Resolution, To, check_resolution, parse_range
from services.cli.windows import app
from services.core.counting import EventKind
from services.core.plurals import counted
from services.platform.errors import UserError
from services.platform.postgres import transaction
from services.windowing.event_queries import list_events

_EVENTS = (
    Column("Window", whole=True),
    Column("Min", number=True),
    Column("Meter", whole=True),
    Column("Event", whole=True),
    Column("What happened"),
)


@command(app, "events", "organization", "database", "as_json")
async def events(
    session: Session,
    *,
    from_: From,
    to: To,
    resolution: Resolution = None,
    meter: Annotated[
        int | None, typer.Option("--meter", metavar="ID", help="Only of this meter.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help=f"Only {', '.join(EventKind)}.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
) -> None:
    """List what closing found worth saying of a meter: resets and roll-overs of registers, readings not counted."""
    start, end = parse_range(from_, to)
    check_resolution(resolution)
    if kind is not None and kind not in set(EventKind):
        raise UserError(f"no event is ever {kind!r}; kinds: {', '.join(EventKind)}")
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        await choosing.check_meter(connection, organization, meter)
        found, total = await list_events(
            connection,
            organization.organization_id,
            start,
            end,
            meter_id=meter,
            resolution_minutes=resolution,
            kind=kind,
            limit=limit,
        )
    if session.answer.as_json:
        listed = [one._asdict() for one in found]
        session.answer.json({"organization": organization.name, "total": total, "events": listed})
    elif not found:
        session.answer.say("Nothing is to be said of any meter in these windows.")
    else:
        rows = [
            (
                one.window_start,
                one.resolution_minutes,
                str(one.meter_id),
                one.kind.value,
                _SENTENCES[one.kind](one.detail),
            )
            for one in found
        ]
        session.answer.table(_EVENTS, rows, title=f"Events of {organization.name}")
        if total > len(found):
            session.answer.note(f"{len(found):,} of {total:,} shown (--limit)")


_SENTENCES: dict[EventKind, Callable[[dict[str, Any]], str]] = {
    EventKind.REGISTERS_BEGIN: lambda detail: f"counts by registers from {detail['register']:,} at {detail['at']} on",
    EventKind.PULSES_BEGIN: lambda _detail: "counts by pulses from here on",
    EventKind.REGISTER_ROLLED_OVER: lambda detail: f"rolled over at {detail['modulus']:,}: {_steps(detail)}",
    EventKind.REGISTER_RESET: lambda detail: f"fell, which counts nothing: {_steps(detail)}",
    EventKind.REGISTER_BEYOND_MODULUS: lambda detail: (
        f"not below the modulus {detail['modulus']:,}: "
        + ", ".join(f"{one['register']:,} at {one['at']}" for one in detail["registers"])
    ),
    EventKind.OTHER_KIND_IGNORED: lambda detail: (
        f"{counted(detail['readings'], 'reading')} of {detail['kind']} not counted"
    ),
    EventKind.OVERLAP_IGNORED: lambda detail: (
        f"{counted(detail['readings'], 'reading')} inside longer ones not counted, {counted(detail['pulses'], 'pulse')}"
    ),
}


def _steps(detail: dict[str, Any]) -> str:
    return ", ".join(f"{step['from']:,} to {step['to']:,} at {step['at']}" for step in detail["steps"])
