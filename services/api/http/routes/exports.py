"""Manual exports: any range of measurements as a file, asked for, watched, cancelled."""

from datetime import timedelta
from typing import Annotated
from urllib.parse import urlencode

import msgspec

from services.api import measurement_queries
from services.api.export_downloads import DEFAULT_LIFETIME, LONGEST_LIFETIME, sign_link
from services.api.http.call import Call
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import link, page, read_cursor
from services.api.http.problems import Problem, invalid, not_found
from services.api.http.routes.export_forms import (
    ExportAsked,
    ExportBody,
    ExportLimits,
    Exports,
    ExportShown,
    ExportsQuery,
    KeptFrom,
    LinkShown,
    fields,
    refusal,
    shown,
    wanted,
)
from services.api.manual_exports import (
    ExportRefusedError,
    ManualExport,
    cancel_export,
    create_export,
    find_export,
    list_exports,
    rows_kept_from,
)
from services.core.manual_export import (
    LONGEST_RANGE,
    MAX_AT_ONCE,
    MAX_METERS,
    MAX_SITES,
    MAX_UNFINISHED,
    WhenFull,
)
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.errors import UserError

_MINUTE = timedelta(minutes=1)


class ExportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the link to the file is to be good."""

    link_minutes: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_LIFETIME // _MINUTE)] = DEFAULT_LIFETIME // _MINUTE


async def show_exports(call: Call) -> Answer:
    """List exports, the newest first."""
    query = call.query(ExportsQuery)
    after = read_cursor(query, [int])
    rows = await list_exports(
        *(call.connection, call.organization_id),
        limit=query.limit + 1,
        before_id=None if after is None else after[0],
        requested_by=call.caller.actor if query.mine else None,
        states=query.state or None,
        within_sites=call.caller.site_ids,
    )
    found, cursor = page(query, rows, lambda one: [one.export_id])
    return Answer(Exports([shown(one) for one in found], cursor), headers=link(call, cursor))


async def show_export(call: Call) -> Answer:
    """Show an export, with a fresh link where its file is there."""
    export = await _find(call)
    if export.state != "done" or export.expires_at is None or call.now >= export.expires_at:
        return Answer(shown(export))
    lifetime = timedelta(minutes=call.query(ExportQuery).link_minutes)
    signed = sign_link(call.means.vault, call.organization_id, export, call.now, lifetime)
    query = urlencode({"organization_id": signed.organization_id, "token": signed.token})
    url = f"{call.means.settings.api_public_url.rstrip('/')}/v1/exports/{export.export_id}/file?{query}"
    return Answer(shown(export, LinkShown(url, signed.expires_at)))


async def new_export(call: Call) -> Answer:
    """Ask for an export."""
    body = call.body(ExportBody)
    asked = wanted(body, await _allowed_sites(call, body))
    try:
        export_id = await create_export(
            call.connection, call.organization_id, call.caller.actor, asked, WhenFull(body.if_full)
        )
    except ExportRefusedError as error:
        raise refusal(error) from None
    export = await find_export(call.connection, call.organization_id, export_id)
    await call.audit("export.create", export_id, None, shown(export))
    kept_from = await rows_kept_from(call.connection, asked.resolution_minutes)
    answer = ExportAsked(**fields(export), rows_kept_from=kept_from)
    return Answer(answer, 201, {"Location": f"/v1/exports/{export_id}"})


async def cancel(call: Call) -> Answer:
    """Give an export up."""
    before = await _find(call)
    if before.requested_by != call.caller.actor and not call.caller.scopes & {"exporter", "admin"}:
        raise Problem(
            "insufficient_scope",
            f"export {before.export_id} is another caller's: to cancel it needs the scope exporter or admin",
        )
    after = await cancel_export(call.connection, call.organization_id, before.export_id, call.caller.actor)
    if shown(after) != shown(before):
        await call.audit("export.cancel", before.export_id, shown(before), shown(after))
    return Answer(shown(after))


async def show_limits(call: Call) -> Answer:
    """Show what may be asked."""
    kept = [KeptFrom(one, await rows_kept_from(call.connection, one)) for one in RESOLUTIONS_MINUTES]
    return Answer(
        ExportLimits(LONGEST_RANGE // timedelta(days=1), MAX_SITES, MAX_METERS, MAX_AT_ONCE, MAX_UNFINISHED, kept)
    )


async def _find(call: Call) -> ManualExport:
    """Return the export of the path. Raises Problem where the caller may see none of this id."""
    export_id = call.id("export_id", "export")
    try:
        export = await find_export(call.connection, call.organization_id, export_id)
    except UserError:
        raise not_found(f"export {export_id}") from None
    held, sites = call.caller.site_ids, export.wanted.site_ids
    if held is not None and (sites is None or not set(sites) <= set(held)):
        raise not_found(f"export {export_id}")
    return export


async def _allowed_sites(call: Call, body: ExportBody) -> list[int] | None:
    """Return the sites of an export. Raises Problem for sites and meters that are not the caller's to see."""
    held = call.caller.site_ids
    if held is None:
        return body.site_ids
    if hidden := sorted(set(body.site_ids or ()) - set(held)):
        raise invalid("site_ids", f"there is no site {hidden[0]} here: leave out what is not yours")
    if body.meter_ids is not None:
        seen = set(await measurement_queries.meters_of_sites(call.connection, call.organization_id, held))
        if hidden := sorted(set(body.meter_ids) - seen):
            raise invalid("meter_ids", f"there is no meter {hidden[0]} here: leave out what is not yours")
    return body.site_ids or sorted(held)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/exports", "list_exports", "Manual exports, the newest first"),
        *(show_exports, "viewer", Exports),
        query=ExportsQuery,
    ),
    Endpoint(
        *("POST", "/v1/exports", "create_export", "Ask for any range of measurements as a file"),
        *(new_export, "viewer", ExportAsked, 201),
        body=ExportBody,
        body_form="json",
        is_create=True,
        codes=("too_many_exports",),
    ),
    Endpoint(
        *("GET", "/v1/export-limits", "show_export_limits", "What may be asked of a manual export"),
        *(show_limits, "viewer", ExportLimits),
    ),
    Endpoint(
        *("GET", "/v1/exports/{export_id}", "show_export", "A manual export, with a fresh link to its file"),
        *(show_export, "viewer", ExportShown),
        query=ExportQuery,
        has_secret=True,
    ),
    Endpoint(
        *("POST", "/v1/exports/{export_id}/cancel", "cancel_export", "Give a manual export up"),
        *(cancel, "viewer", ExportShown),
        codes=("conflict",),
    ),
)
