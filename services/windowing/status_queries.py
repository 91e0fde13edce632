"""Where closing stands, for people and programs. Read only; nothing here needs a running windowing."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.windows import DEFAULT_GRACE
from services.platform.postgres import Connection


class Standing(NamedTuple):
    """One resolution: closed for every meter up to `closed_until`, in some buckets up to `furthest_until`."""

    resolution_minutes: int
    opened_at: datetime
    closed_until: datetime
    furthest_until: datetime
    grace: timedelta
    """With which the last windows were closed."""
    last_forced_until: datetime | None
    """Windows before this were closed by force, the last ones of them."""


async def standings(connection: Connection) -> list[Standing]:
    """Return every resolution's standing; none before the first reading."""
    rows = await connection.fetch(
        """
        SELECT c.resolution_minutes, c.opened_at,
               (SELECT min(closed_until) FROM window_frontier f WHERE f.resolution_minutes = c.resolution_minutes),
               (SELECT max(closed_until) FROM window_frontier f WHERE f.resolution_minutes = c.resolution_minutes),
               coalesce((SELECT grace FROM window_grace g WHERE g.resolution_minutes = c.resolution_minutes
                         ORDER BY from_start DESC LIMIT 1), $1),
               (SELECT max(until_start) FROM window_forced w WHERE w.resolution_minutes = c.resolution_minutes)
        FROM window_closed c ORDER BY c.resolution_minutes
        """,
        DEFAULT_GRACE,
    )
    return [Standing(*row) for row in rows]


class Occupied(NamedTuple):
    """A window that is open and holds something already: its bucket closes no further than there."""

    resolution_minutes: int
    bucket: int
    window_start: datetime
    in_table: str
    meter_id: int | None
    """None: a proof."""


async def occupied(connection: Connection) -> list[Occupied]:
    """Return each bucket's first window of that kind, table by table, within a day of where the bucket stands.

    Further ahead lies what the other buckets have closed since, all of which would have to be looked at.
    """
    first = " UNION ALL ".join(
        f"(SELECT window_start, '{table}' AS in_table, {meter_id} AS meter_id FROM {table} "  # noqa: S608 - names of ours
        "WHERE resolution_minutes = f.resolution_minutes AND window_start >= f.closed_until "
        "AND window_start < f.closed_until + interval '1 day' "
        f"AND {bucket} = f.bucket ORDER BY window_start LIMIT 1)"
        for table, meter_id, bucket in (
            ("measurement", "meter_id", "meter_id % n.buckets"),
            ("meter_event", "meter_id", "meter_id % n.buckets"),
            ("window_closing", "NULL::integer", "bucket"),
        )
    )
    rows = await connection.fetch(
        f"SELECT f.resolution_minutes, f.bucket, held.window_start, in_table, meter_id "  # noqa: S608 - as above
        "FROM window_frontier f CROSS JOIN (SELECT max(bucket) + 1 AS buckets FROM window_frontier) n "
        f"CROSS JOIN LATERAL ({first}) held ORDER BY window_start, resolution_minutes, bucket, in_table"
    )
    return [Occupied(*row) for row in rows]


async def newest_grace(connection: Connection) -> timedelta:
    """Return the grace with which windows were closed last; the default before any was."""
    grace: timedelta = await connection.fetchval(
        "SELECT coalesce((SELECT grace FROM window_grace ORDER BY from_start DESC LIMIT 1), $1)", DEFAULT_GRACE
    )
    return grace


class ForcedCount(NamedTuple):
    """How many windows a decision closed, over all resolutions, and how many of them have rows."""

    force_id: int
    windows: int
    windows_with_rows: int


async def forced_counts(connection: Connection, force_ids: Sequence[int]) -> dict[int, ForcedCount]:
    """Return what became of decisions; those that closed nothing yet are left out."""
    rows = await connection.fetch(
        """
        SELECT f.force_id,
               (SELECT sum(n.windows) FROM (
                    SELECT DISTINCT w.resolution_minutes, w.from_start, w.until_start,
                           window_starts(w.from_start, w.until_start, w.resolution_minutes) AS windows
                    FROM window_forced w WHERE w.force_id = f.force_id) n)::bigint,
               (SELECT count(DISTINCT (c.resolution_minutes, c.window_start)) FROM window_closing c
                JOIN window_forced w ON w.resolution_minutes = c.resolution_minutes AND w.bucket = c.bucket
                                    AND c.window_start >= w.from_start AND c.window_start < w.until_start
                WHERE w.force_id = f.force_id)
        FROM unnest($1::bigint[]) AS f (force_id)
        WHERE EXISTS (SELECT FROM window_forced w WHERE w.force_id = f.force_id)
        """,
        list(force_ids),
    )
    return {row[0]: ForcedCount(*row) for row in rows}
