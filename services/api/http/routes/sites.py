"""Sites: what they are called, and the zone in which their days begin."""

from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from services.api import registry_queries
from services.api.catalog_edits import describe_site, give_site_to_account
from services.api.catalog_store import NewSite, catalog_change
from services.api.http.call import Call
from services.api.http.decoding import Id, Instant, Text
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.known import KnownQuery, ValidFrom, as_known
from services.api.http.paging import Cursor, Limit, link, page, read_cursor
from services.api.http.problems import invalid, not_found
from services.api.registry_queries import AsKnown, Site

Zone = Annotated[str, msgspec.Meta(min_length=1, max_length=60, description="IANA name, such as Europe/Berlin.")]


class SiteShown(msgspec.Struct, frozen=True):
    """A site as described from `valid_from` on (null: since ever)."""

    site_id: int
    account_id: int | None
    name: str
    time_zone: str
    valid_from: Instant | None
    catalog_revision: int


class Sites(msgspec.Struct, frozen=True):
    """A page of sites."""

    sites: list[SiteShown]
    next_cursor: str | None


class SiteHistory(msgspec.Struct, frozen=True):
    """Every description that a site ever had; of two for one instant, the higher revision holds."""

    descriptions: list[SiteShown]


class SitesQuery(KnownQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which sites."""

    search: Annotated[str, msgspec.Meta(max_length=200, description="Part of the name.")] | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class SiteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A site to be created."""

    name: Text
    time_zone: Zone
    account_id: Id | None = None


class SiteChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to change; what is left out stays."""

    name: Text | msgspec.UnsetType = msgspec.UNSET
    time_zone: Zone | msgspec.UnsetType = msgspec.UNSET
    valid_from: ValidFrom | msgspec.UnsetType | None = msgspec.UNSET


async def list_sites(call: Call) -> Answer:
    """List sites by id."""
    query = call.query(SitesQuery)
    known = await as_known(call, query)
    [after] = read_cursor(query, [int]) or [0]
    rows = await registry_queries.sites_page(
        call.connection, call.organization_id, known, call.caller.site_ids, after, query.search, query.limit + 1
    )
    found, cursor = page(query, rows, lambda one: [one.site_id])
    return Answer(Sites([shown(one) for one in found], cursor), headers=link(call, cursor))


async def show_site(call: Call) -> Answer:
    """Show a site."""
    known = await as_known(call, call.query(KnownQuery))
    return Answer(shown(await find(call, call.id("site_id", "site"), known)))


async def show_history(call: Call) -> Answer:
    """Show how a site was ever described."""
    site_id = call.id("site_id", "site")
    rows = await registry_queries.site_history(call.connection, call.organization_id, site_id)
    if not rows or not call.caller.sees_site(site_id):
        raise not_found(f"site {site_id}")
    return Answer(SiteHistory([shown(one) for one in rows]))


async def create_site(call: Call) -> Answer:
    """Create a site, described as told since ever."""
    new = call.body(SiteBody)
    check_zone(new.time_zone)
    if new.account_id is not None:
        known = await call.connection.fetchval(
            "SELECT true FROM account WHERE organization_id = $1 AND account_id = $2",
            *(call.organization_id, new.account_id),
        )
        if not known:
            raise invalid("account_id", f"the organization has no account {new.account_id}")
    async with catalog_change(call.connection) as change:
        [site_id] = await change.add_sites(call.organization_id, [NewSite(new.name, new.time_zone)])
        if new.account_id is not None:
            await give_site_to_account(change, site_id, new.account_id)
        site = SiteShown(site_id, new.account_id, new.name, new.time_zone, None, change.revision)
        await call.audit("site.create", site_id, None, site)
    return Answer(site, 201, {"Location": f"/v1/sites/{site_id}"})


SINCE_EVER = datetime.min.replace(tzinfo=UTC)
"""Before everything that the catalog knows but what holds since ever: an edit from there on begins with that."""


async def edit_site(call: Call) -> Answer:
    """Give a site another name or zone from an instant on; the past keeps what it had."""
    changes, site_id = call.body(SiteChanges), call.id("site_id", "site")
    if isinstance(changes.time_zone, str):
        check_zone(changes.time_zone)
    async with catalog_change(call.connection) as change:
        before = await find(call, site_id, await as_known(call))
        call.match(shown(before))
        valid_from = from_when(call, changes.valid_from)
        base = await find(call, site_id, AsKnown(valid_from or SINCE_EVER, change.revision))
        name = base.name if changes.name is msgspec.UNSET else changes.name
        time_zone = base.time_zone if changes.time_zone is msgspec.UNSET else changes.time_zone
        if (name, time_zone) != (base.name, base.time_zone):
            await describe_site(change, site_id, valid_from, name, time_zone)
            after = SiteShown(site_id, base.account_id, name, time_zone, valid_from, change.revision)
            await call.audit("site.edit", site_id, shown(base), after)
    return Answer(shown(await find(call, site_id, await as_known(call))))


async def find(call: Call, site_id: int, known: AsKnown) -> Site:
    """Return a site that the caller may see. Raises Problem where there is none."""
    found = await registry_queries.find_site(call.connection, call.organization_id, known, site_id)
    if found is None or not call.caller.sees_site(site_id):
        raise not_found(f"site {site_id}")
    return found


def from_when(call: Call, told: datetime | msgspec.UnsetType | None) -> datetime | None:
    """Return from when on a change holds; None: since ever."""
    if told is msgspec.UNSET:
        return call.now
    return None if told is None else told.astimezone(UTC)


def check_zone(name: str) -> None:
    """Raise Problem for a zone that nobody knows."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid(
            "time_zone", f"the time zone {name!r} is not known; give an IANA name such as Europe/Berlin"
        ) from None


def shown(site: Site) -> SiteShown:
    """Return a site as it is shown."""
    return SiteShown(site.site_id, site.account_id, site.name, site.time_zone, site.valid_from, site.revision)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/sites", "list_sites", "Sites, as in force and known at some time"),
        *(list_sites, "viewer", Sites),
        query=SitesQuery,
    ),
    Endpoint(
        *("POST", "/v1/sites", "create_site", "Create a site"),
        *(create_site, "admin", SiteShown, 201),
        body=SiteBody,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/sites/{site_id}", "show_site", "A site"),
        *(show_site, "viewer", SiteShown),
        query=KnownQuery,
        has_etag=True,
    ),
    Endpoint(
        *("PATCH", "/v1/sites/{site_id}", "edit_site", "Give a site another name or zone from some time on"),
        *(edit_site, "admin", SiteShown),
        body=SiteChanges,
        body_form="json",
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/sites/{site_id}/descriptions", "show_site_history", "How a site was ever described"),
        *(show_history, "viewer", SiteHistory),
    ),
)
