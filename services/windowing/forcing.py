"""Closing windows that a stuck partition holds open, because an operator decided so.

The decision is a row in `window_force`; the workers honour it by the same locks and in the same transactions as any
closing. A window that was closed by it holds what had been stored by then, which `window_forced` pins by offsets.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from services.core.times import floor_to
from services.core.windows import RESOLUTIONS_MINUTES, due_until, platform_watermark
from services.platform.kafka import Partition
from services.platform.metrics import WINDOWS_FORCED
from services.platform.postgres import Connection

log = structlog.get_logger()


class Force(NamedTuple):
    """Windows that end at `closes_until` or before are closed without waiting for `partitions`."""

    force_id: int
    closes_until: datetime
    partitions: frozenset[str]
    """As topic/partition."""

    def due_until(
        self, watermarks: Mapping[Partition, datetime | None], resolution_minutes: int, grace: timedelta
    ) -> datetime | None:
        """Return T such that the windows that start before T may be closed; None: the others were not all heard."""
        others = [key for key in watermarks if f"{key[0]}/{key[1]}" not in self.partitions]
        watermark = platform_watermark(watermarks, others)
        if watermark is None:
            return None
        allowed = floor_to(self.closes_until, timedelta(minutes=resolution_minutes))
        return min(allowed, due_until(watermark, resolution_minutes, grace))


class ForceRecord(NamedTuple):
    """A decision as it is listed."""

    force_id: int
    closes_until: datetime
    partitions: Sequence[str]
    requested_at: datetime
    requested_by: str
    reason: str


class DuePoint(NamedTuple):
    """How far windows may be closed, and by whose decision; None: by none, everything up to there is stored."""

    until: datetime
    force_id: int | None


def furthest(
    forces: Iterable[Force],
    watermarks: Mapping[Partition, datetime | None],
    resolution_minutes: int,
    grace: timedelta,
) -> DuePoint | None:
    """Return how far the decisions together let windows be closed, and the one that goes furthest."""
    points = [
        DuePoint(until, force.force_id)
        for force in forces
        if (until := force.due_until(watermarks, resolution_minutes, grace)) is not None
    ]
    return max(points, default=None)


async def open_forces(connection: Connection, frontier: datetime | None = None) -> list[Force]:
    """Return the decisions that reach beyond `frontier`; without it, beyond where some resolution stands."""
    rows = await connection.fetch(
        "SELECT force_id, closes_until, partitions FROM window_force WHERE closes_until > "
        "coalesce($1, (SELECT min(closed_until) FROM window_frontier), '-infinity'::timestamptz) ORDER BY force_id",
        frontier,
    )
    return [Force(row[0], row[1], frozenset(row[2])) for row in rows]


async def list_forces(connection: Connection, limit: int) -> list[ForceRecord]:
    """Return the newest decisions."""
    rows = await connection.fetch(
        f"SELECT {', '.join(ForceRecord._fields)} FROM window_force ORDER BY force_id DESC LIMIT $1",  # noqa: S608 - columns of ours
        limit,
    )
    return [ForceRecord(*row) for row in rows]


async def add_force(
    connection: Connection, closes_until: datetime, partitions: Collection[str], operator: str, reason: str
) -> int:
    """Record a decision; the workers see it at their next look."""
    force_id: int = await connection.fetchval(
        "INSERT INTO window_force (closes_until, partitions, requested_by, reason) VALUES ($1, $2, $3, $4) "
        "RETURNING force_id",
        closes_until,
        sorted(partitions),
        operator,
        reason,
    )
    return force_id


_MARK = """
WITH marked AS (
    UPDATE window_closing SET force_id = $5
    WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3 AND bucket = ANY ($4::smallint[])
)
INSERT INTO window_forced (resolution_minutes, bucket, from_start, until_start, force_id, stored_before)
SELECT $1, bucket, $2, $3, $5, (
    SELECT coalesce(jsonb_object_agg((topic = $7)::integer || '/' || partition, next_offset), '{}')
    FROM ingest_progress WHERE topic = ANY ($6::text[]))
FROM unnest($4::smallint[]) AS bucket
"""


async def mark_forced(
    connection: Connection,
    resolution_minutes: int,
    span: tuple[datetime, datetime],
    buckets: Sequence[int],
    force_id: int,
    reading_topics: Sequence[str],
    logger_topic: str,
) -> None:
    """Record that the windows of a span were closed by a decision, and what had been stored by then.

    To be called in the transaction that closes them, which must see one state of the tables throughout.
    """
    await connection.execute(
        _MARK, resolution_minutes, *span, list(buckets), force_id, list(reading_topics), logger_topic
    )


def tell_forced(resolution_minutes: int, span: tuple[datetime, datetime], buckets: int, force_id: int) -> None:
    """Count and log that the windows of a span were closed by a decision."""
    start, end = span
    windows = buckets * ((end - start) // timedelta(minutes=resolution_minutes))
    WINDOWS_FORCED.labels(str(resolution_minutes)).inc(windows)
    log.warning(
        "windows_forced",
        resolution_minutes=resolution_minutes,
        buckets=buckets,
        start=start.isoformat(),
        end=end.isoformat(),
        force_id=force_id,
    )


def holding(
    watermarks: Mapping[Partition, datetime | None], closes_until: datetime, grace: timedelta
) -> frozenset[Partition]:
    """Return the partitions that keep some window that ends at `closes_until` or before from being closed."""
    held = set()
    for key, watermark in watermarks.items():
        reached = {
            resolution: None if watermark is None else due_until(watermark, resolution, grace)
            for resolution in RESOLUTIONS_MINUTES
        }
        for resolution, until in reached.items():
            if until is None or until < floor_to(closes_until, timedelta(minutes=resolution)):
                held.add(key)
    return frozenset(held)
