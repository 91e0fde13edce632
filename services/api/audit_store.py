"""The audit log: who changed what, before and after. Rows are only ever added."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from services.platform.postgres import Connection


class Change(NamedTuple):
    """One change. Before and after are what the API shows of the object, so without secrets."""

    organization_id: int | None
    actor: str
    actor_name: str
    action: str
    object_id: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    request_id: str | None = None


class Entry(NamedTuple):
    """A change on record; before and after as JSON."""

    audit_id: int
    made_at: datetime
    actor: str
    actor_name: str
    action: str
    object_id: str
    before: str | None
    after: str | None
    request_id: str | None


async def record(connection: Connection, change: Change, now: datetime) -> None:
    """Put a change on record, in the transaction that makes it."""
    await connection.execute(
        """
        INSERT INTO audit_entry (organization_id, made_at, actor, actor_name, action, object_id, before, after,
                                 request_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb, $9)
        """,
        *(change.organization_id, now, change.actor, change.actor_name, change.action, change.object_id),
        *(_json(change.before), _json(change.after), change.request_id),
    )


async def entries(
    connection: Connection, organization_id: int | None, before_id: int | None, limit: int, object_id: str | None = None
) -> list[Entry]:
    """Return changes, the latest first, of an organization (None: of the platform)."""
    rows = await connection.fetch(
        """
        SELECT audit_id, made_at, actor, actor_name, action, object_id, before, after, request_id FROM audit_entry
        WHERE organization_id IS NOT DISTINCT FROM $1 AND ($2::bigint IS NULL OR audit_id < $2)
          AND ($4::text IS NULL OR object_id = $4)
        ORDER BY audit_id DESC LIMIT $3
        """,
        *(organization_id, before_id, limit, object_id),
    )
    return [Entry(*row) for row in rows]


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)
