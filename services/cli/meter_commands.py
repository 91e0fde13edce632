"""`meterpost meters`: registering meters from a file, and showing them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from services.api.catalog_queries import meters, organizations, sites
from services.api.meter_import import (
    COMPARED,
    COMPARED_CHANNEL,
    Imported,
    ImportRefusedError,
    ImportRules,
    import_meters,
)
from services.cli.input_file import read_text
from services.cli.session import Session, command
from services.cli.show import Column, problems_json, refuse, tell_left_out
from services.core.conversion import Utility
from services.core.csv_table import Problem
from services.core.meter_csv import MeterFile, MeterLine, parse_meter_csv
from services.core.nem12 import UNITS_PER_PULSE, parse_nem12
from services.core.parts import slug
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction

app = typer.Typer(no_args_is_help=True, help="Meters: register them from a file, list them.")

DEFAULT_ORGANIZATION = "Default"
MARKET_ZONE = "Australia/Brisbane"
"""UTC+10 without summer time, as NEM12's market time."""

_COLUMNS = (
    Column("ID", number=True),
    Column("Name"),
    Column("Type"),
    Column("Unit"),
    Column("Per pulse", number=True),
    Column("Site"),
)


@command(app, "import", "organization", "database", "as_json")
async def import_(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Plain, .gz, or a .zip with one file.")],
    *,
    from_nem12: Annotated[
        bool,
        typer.Option("--from-nem12", help="FILE is NEM12: a bridge, and a meter of 0.001 kWh per pulse per channel."),
    ] = False,
    site: Annotated[str, typer.Option(metavar="NAME", help="With --from-nem12: the site of the channels.")] = "NEM12",
    device: Annotated[
        str | None,
        typer.Option(metavar="ID", help="With --from-nem12: the bridge's id. Default: one per organization."),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE", help=f"IANA zone of sites that are created. Default: UTC; with --from-nem12 {MARKET_ZONE}."
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out, and say which.")] = False,
) -> None:
    """Register the meters of a file: all of them, or none where a line is wrong.

    A CSV begins with a header line of these columns: name, meter_type (Electricity, Water, Gas, Heat, Air), unit,
    units_per_pulse, site (a name or an id), device_id, device_kind (logger or bridge), input (empty for a bridge);
    where wanted also normalization_factor, calorific_value, register_modulus, cadence_minutes, serial_number, meter_id.

    A meter that is there already stays as it is, so a file can be imported again. The organization is created where
    there is none of its name (without --organization: the only one there is, or "Default").
    """
    text = read_text(file)
    zone = time_zone or (MARKET_ZONE if from_nem12 else "UTC")
    _check_zone(zone)
    async with session.pool() as pool:
        organization = await _organization_for_import(session, pool)
        bridge = device or f"NEM12-{slug(organization)}"
        found = _channels(text, site, bridge) if from_nem12 else parse_meter_csv(text)
        if (found.problems and not skip_bad) or not found.meters:
            raise refuse(str(file), found.problems or [Problem(1, "there is no meter in it")])
        rules = ImportRules(zone, skip_bad=skip_bad, compared=COMPARED_CHANNEL if from_nem12 else COMPARED)
        try:
            done = await import_meters(pool, organization, found.meters, rules)
        except ImportRefusedError as refused:
            raise refuse(str(file), refused.problems) from None
    _tell(session, done, sorted([*found.problems, *done.problems]))


@command(app, "list", "organization", "database", "as_json")
async def list_(
    session: Session,
    *,
    search: Annotated[str, typer.Option(metavar="TEXT", help="Only meters or sites whose name holds this.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
) -> None:
    """List meters, with their sites and what a pulse of each stands for."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        found = await meters(connection, organization.organization_id)
        zones = {one.site_id: one.time_zone for one in await sites(connection, organization.organization_id)}
    wanted = search.casefold()
    matching = [one for one in found if wanted in one.name.casefold() or wanted in one.site_name.casefold()]
    shown = matching[:limit]
    if session.answer.as_json:
        listed = [one._asdict() | {"time_zone": zones[one.site_id]} for one in shown]
        session.answer.json({"organization": organization.name, "total": len(matching), "meters": listed})
        return
    rows = [
        (str(one.meter_id), one.name, one.meter_type, one.unit, one.units_per_pulse, one.site_name) for one in shown
    ]
    session.answer.table(_COLUMNS, rows, title=f"Meters of {organization.name}")
    if len(shown) < len(matching):
        session.answer.say(f"The first {len(shown):,} of {len(matching):,}; --limit or --search shows others.")


def _channels(text: str, site: str, bridge: str) -> MeterFile:
    """Return the meters that a NEM12 file's channels stand for."""
    found = parse_nem12(text)
    lengths = {day.channel: day.interval_minutes for day in found.days}
    first_lines: dict[object, int] = {}
    for day in found.days:
        first_lines.setdefault(day.channel, day.line)
    registered = tuple(
        MeterLine(
            line=first_lines.get(channel, 1),
            name=channel.name,
            meter_type="Electricity",
            utility=Utility.ELECTRICITY,
            unit="kWh",
            units_per_pulse=UNITS_PER_PULSE,
            site=site,
            device_id=bridge,
            device_kind="bridge",
            input=None,
            cadence_minutes=lengths.get(channel, 5),
        )
        for channel in found.channels
    )
    return MeterFile(registered, found.problems)


async def _organization_for_import(session: Session, pool: Pool) -> str:
    if session.organization_name is not None:
        if not 1 <= len(session.organization_name.strip()) <= 120:
            raise UserError("an organization's name has 1 to 120 characters")
        return session.organization_name
    async with transaction(pool) as connection:
        if not await organizations(connection):
            return DEFAULT_ORGANIZATION
        return (await session.organization(connection)).name


def _check_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"the time zone {name!r} is not known; give an IANA name such as Europe/Berlin") from None


def _tell(session: Session, done: Imported, left_out: Iterable[Problem]) -> None:
    problems = list(left_out)
    if session.answer.as_json:
        created = {"sites": done.sites, "devices": done.devices, "meters": done.meters}
        session.answer.json(
            {
                "organization": done.organization,
                "created": created,
                "unchanged": done.unchanged,
                "left_out": problems_json(problems),
                "catalog_revision": done.revision,
            }
        )
        return
    tell_left_out(session.answer, problems)
    if done.revision is None:
        session.answer.say(
            f"Nothing changed: all {done.unchanged:,} meters are registered in {done.organization!r} already."
        )
        return
    counts = ", ".join(
        f"{count:,} {name}{'' if count == 1 else 's'}"
        for count, name in ((done.meters, "meter"), (done.sites, "site"), (done.devices, "device"))
        if count
    )
    already = f" {done.unchanged:,} were there already." if done.unchanged else ""
    session.answer.say(f"Registered in {done.organization!r}: {counts}.{already}")
