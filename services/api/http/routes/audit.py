"""The audit log."""

import msgspec

from services.api import audit_store
from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import PageQuery, link, page, read_cursor


class AuditQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which changes."""

    object_id: str | None = None


class EntryShown(msgspec.Struct, frozen=True):
    """A change: before and after as the API showed the object, null where there was or is none."""

    audit_id: int
    made_at: Instant
    actor: str
    actor_name: str
    action: str
    object_id: str
    before: msgspec.Raw
    after: msgspec.Raw
    request_id: str | None


class AuditLog(msgspec.Struct, frozen=True):
    """A page of changes, the latest first."""

    entries: list[EntryShown]
    next_cursor: str | None


async def list_changes(call: Call) -> Answer:
    """List changes, the latest first."""
    query = call.query(AuditQuery)
    [before] = read_cursor(query, [int]) or [None]
    organization_id = call.caller.grant.organization_id
    rows = await audit_store.entries(call.connection, organization_id, before, query.limit + 1, query.object_id)
    shown, cursor = page(query, rows, lambda one: [one.audit_id])
    return Answer(AuditLog([_shown(one) for one in shown], cursor), headers=link(call, cursor))


def _shown(entry: audit_store.Entry) -> EntryShown:
    before, after = (msgspec.Raw((text or "null").encode()) for text in (entry.before, entry.after))
    return EntryShown(*entry[:6], before, after, entry.request_id)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/audit", "list_changes", "Who changed what, the latest first"),
        *(list_changes, "admin", AuditLog),
        query=AuditQuery,
        is_whole_organization=True,
    ),
    Endpoint(
        *("GET", "/v1/platform/audit", "list_platform_changes", "The operator's own changes, the latest first"),
        *(list_changes, "operator", AuditLog),
        query=AuditQuery,
    ),
)
