"""`meterpost measurements`: closed windows, over the HTTP API alone."""

from typing import Annotated

import typer

from services.cli.api_session import Api
from services.cli.choosing import From, To, resolution_of, span
from services.cli.session import Session, command
from services.cli.show import Column, write
from services.core.times import iso_seconds
from services.platform.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Measurements: closed windows, over the HTTP API.")
_COLUMNS = (
    Column("Window", whole=True),
    Column("Meter", number=True),
    Column("Name"),
    Column("Site"),
    Column("Energy, Wh", number=True),
    Column("Volume", number=True),
    Column("Intervals", number=True),
    Column("Flags"),
)


async def list_over_api(
    session: Session,
    api: Api,
    *,
    resolution: int,
    from_: str | None,
    to: str | None,
    meter: list[int] | None,
    site: list[int] | None,
    csv: bool,
    limit: int,
) -> None:
    """List windows."""
    start, end = span(from_, to)
    query = {
        "from_": iso_seconds(start),
        "until": iso_seconds(end),
        "resolution": resolution_of(resolution),
        "meter_id": ",".join(map(str, meter)) if meter else None,
        "site_id": ",".join(map(str, site)) if site else None,
    }
    if csv:
        if session.answer.as_json:
            raise UserError("give either --csv or --json")
        await _write_csv(api, query)
        return
    found = await api.pages("/v1/measurements", "measurements", limit or None, **query)
    if session.answer.as_json:
        session.answer.json({"measurements": found})
    elif not found:
        session.answer.say("No such window is closed.")
    else:
        rows = [
            (
                one["window_start"],
                str(one["meter_id"]),
                one["meter_name"],
                one["site_name"],
                one["energy_wh"],
                one["volume"],
                f"{one['intervals_present']} of {one['intervals_expected']}",
                ", ".join(one["flags"]),
            )
            for one in found
        ]
        session.answer.table(_COLUMNS, rows)


@command(app, "list", "as_json", over_api=list_over_api)
async def list_(
    session: Session,
    *,
    resolution: Annotated[int, typer.Option("--resolution", metavar="MINUTES", help="1, 5, 15 or 60.")] = 60,
    from_: From = None,
    to: To = None,
    meter: Annotated[list[int] | None, typer.Option("--meter", metavar="ID", help="Only this one; repeatable.")] = None,
    site: Annotated[list[int] | None, typer.Option("--site", metavar="ID", help="Only this one; repeatable.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="All of it as the CSV of an export.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many lines; 0: all.")] = 1_000,
) -> None:
    """List closed windows by time and meter: exact, not rounded.

    Example: meterpost --url https://api.example.org measurements list --from 2026-11-20T00:00:00Z
    --to 2026-11-21T00:00:00Z
    """
    del session, resolution, from_, to, meter, site, csv, limit
    raise UserError("measurements are asked of the HTTP API: `meterpost --url https://… measurements list` (`--help`)")


async def _write_csv(api: Api, query: dict[str, object]) -> None:
    """Write every page, with the header of the first alone."""
    body, following = await api.text("/v1/measurements", **query, format="csv", limit=10_000)
    write(body.decode().replace("\r\n", "\n"))
    while following:
        body, following = await api.text(following)
        write(body.decode().replace("\r\n", "\n").partition("\n")[2])
