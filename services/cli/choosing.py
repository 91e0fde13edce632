"""Options by which several commands choose windows: a span of time, a site, resolutions."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from services.api.catalog_queries import AnyConnection, Organization, sites
from services.core.plurals import counted
from services.core.times import floor_to, parse_instant
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.errors import UserError

_NAMES = ", ".join(map(str, RESOLUTIONS_MINUTES))
_CALENDAR = (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC))
"""Between these, windows and their cut-offs can be reckoned with; nothing was ever measured outside."""

From = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="Windows that start here or later.", show_default=False),
]
To = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="Windows that start before this.", show_default=False)
]
Site = Annotated[
    str | None, typer.Option("--site", metavar="NAME_OR_ID", help="Only of this site.", show_default=False)
]
Resolution = Annotated[
    int | None,
    typer.Option("--resolution", metavar="MINUTES", help=f"Only of this resolution: {_NAMES}.", show_default=False),
]
Limit = Annotated[int, typer.Option(min=0, help="At most so many lines; 0: all.")]


def instant(text: str, option: str) -> datetime:
    """Return the instant that an option names, at the calendar's ends a day further in, to leave room to reckon.

    Raises UserError that names the option.
    """
    try:
        return min(max(parse_instant(text), _CALENDAR[0]), _CALENDAR[1])
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def span(from_: str | None, to: str | None) -> tuple[datetime, datetime]:
    """Return the span of --from and --to. Raises UserError where one is missing or there is nothing between them."""
    if from_ is None or to is None:
        raise UserError("--from and --to say which windows are meant: give both, such as 2026-11-20T10:00:00Z")
    start, end = instant(from_, "--from"), instant(to, "--to")
    if start >= end:
        raise UserError(f"nothing lies between --from {from_} and --to {to}")
    return start, end


def resolutions(chosen: int | None) -> tuple[int, ...]:
    """Return the resolutions that --resolution means; all of them without it."""
    if chosen is None:
        return RESOLUTIONS_MINUTES
    return (resolution_of(chosen),)


def resolution_of(minutes: int) -> int:
    """Return the resolution. Raises UserError where windows of it do not exist."""
    if minutes not in RESOLUTIONS_MINUTES:
        raise UserError(f"--resolution is {minutes}; there are {_NAMES} minutes")
    return minutes


def window_start(text: str, resolution_minutes: int, option: str) -> datetime:
    """Return the start of a window. Raises UserError where no window of the resolution starts there."""
    found = instant(text, option)
    if found in _CALENDAR:
        raise UserError(f"{option} is {text}: no window there is ever closed")
    begins = floor_to(found, timedelta(minutes=resolution_minutes))
    if begins != found:
        raise UserError(
            f"{option} is {text}; no window of {counted(resolution_minutes, 'minute')} starts there, one starts at "
            f"{begins:%Y-%m-%dT%H:%M:%SZ}"
        )
    return found


async def site_id(connection: AnyConnection, organization_id: int, chosen: str | None) -> int | None:
    """Return the id of the site that --site names, by id or by name. Raises UserError unless there is just one."""
    if chosen is None:
        return None
    known = await sites(connection, organization_id)
    found = [site for site in known if str(site.site_id) == chosen] or [site for site in known if site.name == chosen]
    if len(found) == 1:
        return found[0].site_id
    if found:
        ids = ", ".join(str(site.site_id) for site in found)
        raise UserError(f"several sites are named {chosen!r}: give the id, one of {ids}")
    names = ", ".join(f"{site.site_id} {site.name!r}" for site in known[:20]) or "none"
    raise UserError(f"there is no site {chosen!r}; there are: {names}")


async def check_meter(connection: AnyConnection, organization: Organization, meter_id: int | None) -> None:
    """Raise UserError where --meter names a meter that the organization does not have; None names none."""
    if meter_id is None:
        return
    owner = await connection.fetchval("SELECT organization_id FROM meter WHERE meter_id = $1", meter_id)
    if owner != organization.organization_id:
        raise UserError(f"{organization.name} has no meter {meter_id}; `meterpost meters list` shows those there are")


def limit_of(limit: int) -> int | None:
    """Return the limit as SQL takes it."""
    return limit or None
