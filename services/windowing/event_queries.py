"""What closing found worth saying of single meters' windows."""

import json
from datetime import datetime
from typing import Any, NamedTuple

from services.core.counting import EventKind
from services.platform.postgres import Connection


class MeterEvent(NamedTuple):
    """An event of one meter's window."""

    window_start: datetime
    resolution_minutes: int
    meter_id: int
    kind: EventKind
    detail: dict[str, Any]


_LIST = """
    SELECT window_start, resolution_minutes, meter_id, kind, detail, count(*) OVER () AS total
    FROM meter_event
    WHERE organization_id = $1 AND window_start >= $2 AND window_start < $3
      AND ($4::integer IS NULL OR meter_id = $4) AND ($5::smallint IS NULL OR resolution_minutes = $5)
      AND ($6::text IS NULL OR kind = $6)
    ORDER BY window_start, resolution_minutes, meter_id, kind
    LIMIT $7
"""


async def list_events(
    connection: Connection,
    organization_id: int,
    start: datetime,
    end: datetime,
    *,
    meter_id: int | None,
    resolution_minutes: int | None,
    kind: str | None,
    limit: int,
) -> tuple[list[MeterEvent], int]:
    """Return the first events of windows that start in [start, end), oldest first, and how many there are in all."""
    rows = await connection.fetch(_LIST, organization_id, start, end, meter_id, resolution_minutes, kind, limit)
    events = [
        MeterEvent(
            row["window_start"],
            row["resolution_minutes"],
            row["meter_id"],
            EventKind(row["kind"]),
            json.loads(row["detail"]),
        )
        for row in rows
    ]
    return events, rows[0]["total"] if rows else 0
