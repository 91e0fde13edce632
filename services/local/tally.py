"""What the platform has done so far, counted so that a look costs the same whatever the age of the instance.

What can change no more is counted once: windows of which every bucket is closed, and parts before the newest run of
their job that has been delivered in part, since the parts of a job are delivered in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from services.platform.postgres import Connection, Pool, transaction

_PROGRESS = """
SELECT coalesce(sum(stored_count), 0)::bigint, coalesce(sum(refused_count), 0)::bigint,
       CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END
FROM ingest_progress
"""

# For each resolution the windows that have become final since the last look, and those that a bucket is ahead with.
_WINDOWS = """
SELECT resolution_minutes, c.closed_until, w.final_count, w.other_count
FROM window_closed c
LEFT JOIN unnest($1::smallint[], $2::timestamptz[]) AS seen (resolution_minutes, until) USING (resolution_minutes)
CROSS JOIN LATERAL (
    SELECT count(DISTINCT window_start) FILTER (WHERE window_start < c.closed_until) AS final_count,
           count(DISTINCT window_start) FILTER (WHERE window_start >= c.closed_until) AS other_count
    FROM window_closing
    WHERE resolution_minutes = c.resolution_minutes AND window_start >= coalesce(seen.until, '-infinity')) w
ORDER BY 1
"""

# For each job the parts delivered since its run of the last look began, and how many of them are before the newest.
_PARTS = """
SELECT j.organization_id, j.job_id, newest.slot_start, p.*,
       (SELECT count(*) FROM export_part WHERE state = 'waiting') AS waiting
FROM export_job_progress j
LEFT JOIN unnest($1::integer[], $2::integer[], $3::timestamptz[]) AS seen (organization_id, job_id, slot_start)
    ON seen.organization_id = j.organization_id AND seen.job_id = j.job_id
CROSS JOIN LATERAL (
    SELECT max(slot_start) AS slot_start FROM export_part
    WHERE organization_id = j.organization_id AND job_id = j.job_id AND state = 'delivered'
      AND slot_start >= coalesce(seen.slot_start, '-infinity')) newest
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE slot_start < newest.slot_start) AS final_parts,
           coalesce(sum(row_count) FILTER (WHERE slot_start < newest.slot_start), 0)::bigint AS final_rows,
           count(*) FILTER (WHERE slot_start = newest.slot_start) AS other_parts,
           coalesce(sum(row_count) FILTER (WHERE slot_start = newest.slot_start), 0)::bigint AS other_rows
    FROM export_part
    WHERE organization_id = j.organization_id AND job_id = j.job_id AND state = 'delivered'
      AND slot_start >= coalesce(seen.slot_start, '-infinity')) p
"""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the platform has done so far."""

    taken_at: datetime
    readings: int = 0
    readings_per_s: int = 0
    refused: int = 0
    watermark: datetime | None = None
    closed_until: Mapping[int, datetime] = field(default_factory=dict)
    windows_closed: int = 0
    parts_delivered: int = 0
    parts_waiting: int = 0
    rows_delivered: int = 0

    @property
    def watermark_lag(self) -> timedelta | None:
        """How far the arrival clock is behind the wall clock."""
        return None if self.watermark is None else max(self.taken_at - self.watermark, timedelta())


class _Windows(NamedTuple):
    final: int
    closed_until: Mapping[int, datetime]


class _Parts(NamedTuple):
    final: int
    final_rows: int
    newest_slots: Mapping[tuple[int, int], datetime]


class Tally:
    """Takes the numbers again and again, from one instance of the platform."""

    def __init__(self) -> None:
        self._before: Numbers | None = None
        self._windows = _Windows(0, {})
        self._parts = _Parts(0, 0, {})

    async def take(self, pool: Pool, now: datetime) -> Numbers:
        """Read the numbers from the tables. Raises Unavailable. The first time everything is counted."""
        async with transaction(pool) as connection:
            progress = await connection.fetchrow(_PROGRESS)
            if progress is None:
                raise RuntimeError("an aggregate always has a row")
            readings, refused, watermark = progress
            windows, ahead = await self._count_windows(connection)
            parts, other_parts, other_rows, waiting = await self._count_parts(connection)
        self._windows, self._parts = windows, parts
        before = self._before
        seconds = (now - before.taken_at).total_seconds() if before else 0
        self._before = Numbers(
            taken_at=now,
            readings=readings,
            readings_per_s=round((readings - before.readings) / seconds) if before and seconds > 0 else 0,
            refused=refused,
            watermark=watermark,
            closed_until=windows.closed_until,
            windows_closed=windows.final + ahead,
            parts_delivered=parts.final + other_parts,
            parts_waiting=waiting,
            rows_delivered=parts.final_rows + other_rows,
        )
        return self._before

    async def _count_windows(self, connection: Connection) -> tuple[_Windows, int]:
        seen = self._windows.closed_until
        rows = await connection.fetch(_WINDOWS, list(seen), list(seen.values()))
        closed_until = {row["resolution_minutes"]: row["closed_until"] for row in rows}
        final = self._windows.final + sum(row["final_count"] for row in rows)
        return _Windows(final, closed_until), sum(row["other_count"] for row in rows)

    async def _count_parts(self, connection: Connection) -> tuple[_Parts, int, int, int]:
        newest = dict(self._parts.newest_slots)
        rows = await connection.fetch(
            _PARTS, [organization for organization, _ in newest], [job for _, job in newest], list(newest.values())
        )
        newest |= {(row["organization_id"], row["job_id"]): row["slot_start"] for row in rows if row["slot_start"]}
        parts = _Parts(
            self._parts.final + sum(row["final_parts"] for row in rows),
            self._parts.final_rows + sum(row["final_rows"] for row in rows),
            newest,
        )
        other_parts, other_rows = sum(row["other_parts"] for row in rows), sum(row["other_rows"] for row in rows)
        return parts, other_parts, other_rows, rows[0]["waiting"] if rows else 0
