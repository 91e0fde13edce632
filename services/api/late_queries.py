"""Readings that closed windows missed. Read only: ingest, windowing and delivery own the tables.

A version of a reading is late for a closed window when it is not among what the window was made of: it arrived after
the window's cut-off, or, where the window was closed by force, it was stored after that. Of the late versions only the
one that is now the newest corrects anything, and only where it says something else than the one that the window held.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.parts import run_id
from services.platform.postgres import Connection, Pool, transaction

MISSED = "missed"
REPEAT = "repeat"
OUTRANKED = "outranked"


class Wanted(NamedTuple):
    """Which late readings are asked for: those of windows that start in [start, end)."""

    start: datetime
    end: datetime
    resolutions_minutes: Sequence[int]
    organization_id: int
    site_id: int | None = None
    meter_id: int | None = None


class LateReading(NamedTuple):
    """One version that is late for one window. What the window held instead is None where it held nothing."""

    verdict: str
    resolution_minutes: int
    window_start: datetime
    cut_off: datetime
    is_forced: bool
    meter_id: int
    meter_name: str | None
    site_id: int | None
    site_name: str | None
    measured_at: datetime
    interval_minutes: int
    is_register: bool
    revision: int
    arrived_at: datetime
    value: int
    held_value: int | None
    held_interval_minutes: int | None
    held_arrived_at: datetime | None
    runs: Sequence[str]

    @property
    def late_by(self) -> timedelta:
        """Arrival minus cut-off; negative where the window was closed by force before the reading was stored."""
        return self.arrived_at - self.cut_off


class LateGroup(NamedTuple):
    """What one run missed of one meter; without a run: windows that no run carries."""

    meter_id: int
    meter_name: str | None
    site_id: int | None
    site_name: str | None
    run: str | None
    readings: int
    windows: int
    longest_late_by: timedelta


class LateTotals(NamedTuple):
    """How many late versions there are, by verdict, and what they concern."""

    missed: int
    repeat: int
    outranked: int
    windows: int
    """Meter-windows that missed something."""
    meters: int
    runs: int
    longest_late_by: timedelta | None


_VERSION = (
    "measured_at, meter_id, arrived_at, value, interval_minutes, is_register, revision, source_topic, "
    "source_partition, source_offset, source_place"
)
# A version later than its window's cut-off is later than its own start by more than a minute and the shortest grace.
_MAY_BE_LATE = (
    "measured_at >= $1 AND measured_at < $2::timestamptz + interval '1 hour' "
    "AND ($6::integer IS NULL OR meter_id = $6) "
    "AND (arrived_at > measured_at + $7::interval OR (measured_at >= $8 AND measured_at < $9))"
)
_SAME_KEY = (
    "measured_at = late.measured_at AND meter_id = late.meter_id "
    "AND measured_at >= $1 AND measured_at < $2::timestamptz + interval '1 hour'"  # spares partitions
)
_IN_TIME = (
    "arrived_at <= late.cut_off AND was_stored(late.stored_before, source_topic, source_partition, source_offset)"
)

_TABLES = """
CREATE TEMPORARY TABLE late_reading (
    verdict text, resolution_minutes integer, window_start timestamptz, cut_off timestamptz, is_forced boolean,
    meter_id integer, meter_name text, site_id integer, site_name text, measured_at timestamptz,
    interval_minutes integer, is_register boolean, revision integer, arrived_at timestamptz, value bigint,
    held_value bigint, held_interval_minutes integer, held_arrived_at timestamptz
) ON COMMIT DROP;
CREATE TEMPORARY TABLE late_run (
    resolution_minutes integer, window_start timestamptz, meter_id integer, job_id integer, slot_start timestamptz
) ON COMMIT DROP;
"""

_FIND = f"""
INSERT INTO late_reading
WITH span AS (
    SELECT f.resolution_minutes, f.bucket, f.closed_until, g.grace, g.from_start, g.until_start
    FROM window_frontier f
    JOIN (SELECT *, lead(from_start, 1, 'infinity') OVER (PARTITION BY resolution_minutes, bucket ORDER BY from_start)
                    AS until_start
          FROM window_grace) g USING (resolution_minutes, bucket)
    WHERE f.resolution_minutes = ANY ($3::smallint[])
), candidate AS (
    SELECT {_VERSION}, true AS is_newest FROM reading WHERE {_MAY_BE_LATE}
    UNION ALL
    SELECT {_VERSION}, false FROM reading_superseded WHERE {_MAY_BE_LATE}
), late AS (
    SELECT span.resolution_minutes, w.window_start, w.cut_off, forced.stored_before, candidate.*
    FROM candidate
    JOIN span ON span.bucket = candidate.meter_id % (SELECT max(bucket) + 1 FROM window_frontier)
    CROSS JOIN LATERAL (
        SELECT s.window_start, s.window_start + span.resolution_minutes * interval '1 minute' + span.grace AS cut_off
        FROM (SELECT date_bin(span.resolution_minutes * interval '1 minute', candidate.measured_at,
                              timestamptz 'epoch') AS window_start) s
    ) w
    LEFT JOIN window_forced forced
           ON forced.resolution_minutes = span.resolution_minutes AND forced.bucket = span.bucket
          AND w.window_start >= forced.from_start AND w.window_start < forced.until_start
    WHERE w.window_start >= $1 AND w.window_start < $2 AND w.window_start < span.closed_until
      AND w.window_start >= span.from_start AND w.window_start < span.until_start
      AND (candidate.arrived_at > w.cut_off
           OR NOT was_stored(forced.stored_before, source_topic, source_partition, source_offset))
)
SELECT CASE WHEN NOT late.is_newest THEN '{OUTRANKED}'
            WHEN (now_part.value, now_part.interval_minutes, now_part.is_register)
                 IS NOT DISTINCT FROM (held.value, held.interval_minutes, held.is_register) THEN '{REPEAT}'
            ELSE '{MISSED}' END,
       late.resolution_minutes, late.window_start, late.cut_off, late.stored_before IS NOT NULL, late.meter_id, c.name,
       c.site_id, d.name, late.measured_at, late.interval_minutes, late.is_register, late.revision, late.arrived_at,
       late.value, held.value, held.interval_minutes, held.arrived_at
FROM late
JOIN meter ON meter.meter_id = late.meter_id AND meter.organization_id = $4
LEFT JOIN LATERAL (
    SELECT value, interval_minutes, is_register, arrived_at
    FROM (
        SELECT value, interval_minutes, is_register, arrived_at
        FROM (SELECT {_VERSION} FROM reading WHERE {_SAME_KEY} AND {_IN_TIME}
              UNION ALL
              SELECT {_VERSION} FROM reading_superseded WHERE {_SAME_KEY} AND {_IN_TIME}) AS in_time
        ORDER BY revision DESC, arrived_at DESC, source_topic DESC, source_partition DESC, source_offset DESC,
                 source_place DESC
        LIMIT 1) AS best
    -- Judged after the version is chosen: a reading of a longer interval takes no part, and nothing stands in for it.
    WHERE interval_minutes <= late.resolution_minutes
) held ON true
LEFT JOIN LATERAL (
    SELECT late.value, late.interval_minutes, late.is_register WHERE late.interval_minutes <= late.resolution_minutes
) now_part ON true
LEFT JOIN LATERAL (
    SELECT name, site_id FROM meter_configuration
    WHERE meter_id = late.meter_id AND valid_from <= late.window_start
      AND revision <= (SELECT revision FROM catalog_revision)
    ORDER BY valid_from DESC, revision DESC LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= late.window_start
      AND revision <= (SELECT revision FROM catalog_revision)
    ORDER BY valid_from DESC, revision DESC LIMIT 1
) d ON true
WHERE ($5::integer IS NULL OR c.site_id = $5)
  AND (now_part.value IS NOT NULL OR (late.is_newest AND held.value IS NOT NULL))
"""  # noqa: S608 - put together from the constants above

# A window of a job's resolution belongs to the one slot that it starts in, wherever that begins: a slot may be shorter
# than its frequency, never longer, and the lower bound spares the index older runs. Sites are those the run went by.
_FIND_RUNS = f"""
INSERT INTO late_run
SELECT l.resolution_minutes, l.window_start, l.meter_id, r.job_id, r.slot_start
FROM (SELECT DISTINCT resolution_minutes, window_start, meter_id FROM late_reading WHERE verdict = '{MISSED}') l
JOIN export_job_version v ON v.organization_id = $1 AND v.resolution_minutes = l.resolution_minutes
                         AND v.data = 'meters_measurements'
JOIN export_run r ON r.organization_id = v.organization_id AND r.job_id = v.job_id AND r.job_version = v.version
                 AND r.slot_start > l.window_start - v.frequency_minutes * interval '1 minute'
                 AND r.slot_start <= l.window_start AND r.slot_end > l.window_start
WHERE r.state <> 'skipped' AND ($2::integer IS NULL OR r.job_id = $2) AND ($3::timestamptz IS NULL OR r.slot_start = $3)
  AND (v.site_ids IS NULL OR (
      SELECT site_id FROM meter_configuration
      WHERE meter_id = l.meter_id AND valid_from <= l.window_start AND revision <= r.catalog_revision
      ORDER BY valid_from DESC, revision DESC LIMIT 1
  ) = ANY (v.site_ids))
"""  # noqa: S608 - a constant of ours

_ONLY_OF_RUNS = """
DELETE FROM late_reading l WHERE NOT EXISTS (
    SELECT FROM late_run r
    WHERE (r.resolution_minutes, r.window_start, r.meter_id) = (l.resolution_minutes, l.window_start, l.meter_id))
"""

_LIST = f"""
SELECT {", ".join("l." + name for name in LateReading._fields if name != "runs")},
       r.job_ids, r.slot_starts
FROM late_reading l
LEFT JOIN (
    SELECT resolution_minutes, window_start, meter_id, array_agg(job_id ORDER BY job_id) AS job_ids,
           array_agg(slot_start ORDER BY job_id) AS slot_starts
    FROM late_run GROUP BY resolution_minutes, window_start, meter_id
) r USING (resolution_minutes, window_start, meter_id)
WHERE $1 OR l.verdict = '{MISSED}'
ORDER BY l.window_start, l.resolution_minutes, l.meter_id, l.measured_at, l.arrived_at LIMIT $2
"""  # noqa: S608 - columns of ours

_GROUPS = f"""
SELECT l.meter_id, max(l.meter_name), l.site_id, max(l.site_name), r.job_id, r.slot_start, count(*),
       count(DISTINCT (l.resolution_minutes, l.window_start)), max(l.arrived_at - l.cut_off)
FROM late_reading l
LEFT JOIN late_run r USING (resolution_minutes, window_start, meter_id)
WHERE l.verdict = '{MISSED}'
GROUP BY l.meter_id, l.site_id, r.job_id, r.slot_start
ORDER BY l.meter_id, l.site_id, r.job_id, r.slot_start LIMIT $1
"""  # noqa: S608 - a constant of ours

_TOTALS = f"""
SELECT count(*) FILTER (WHERE verdict = '{MISSED}'), count(*) FILTER (WHERE verdict = '{REPEAT}'),
       count(*) FILTER (WHERE verdict = '{OUTRANKED}'),
       count(DISTINCT (resolution_minutes, window_start, meter_id)) FILTER (WHERE verdict = '{MISSED}'),
       count(DISTINCT meter_id) FILTER (WHERE verdict = '{MISSED}'),
       (SELECT count(DISTINCT (job_id, slot_start)) FROM late_run),
       max(arrived_at - cut_off) FILTER (WHERE verdict = '{MISSED}')
FROM late_reading
"""  # noqa: S608 - constants of ours

_FORCED_HULL = """
SELECT min(from_start), max(until_start) FROM window_forced
WHERE until_start > $1 AND from_start < $2 AND resolution_minutes = ANY ($3::smallint[])
"""


class Late:
    """The late readings that were asked for, found once, in the transaction that lent it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def readings(self, *, with_repeats: bool, limit: int | None) -> list[LateReading]:
        """Return the late versions by window and meter; with `with_repeats` those, too, that change nothing."""
        rows = await self.connection.fetch(_LIST, with_repeats, limit)
        return [
            LateReading._make([*row[:-2], [run_id(*run) for run in zip(row[-2] or (), row[-1] or (), strict=True)]])
            for row in map(tuple, rows)
        ]

    async def groups(self, limit: int | None) -> list[LateGroup]:
        """Return what each run missed of each meter."""
        rows = await self.connection.fetch(_GROUPS, limit)
        return [
            LateGroup._make([*row[:4], None if row[4] is None else run_id(row[4], row[5]), *row[6:]])
            for row in map(tuple, rows)
        ]

    async def totals(self) -> LateTotals:
        """Return the counts of everything that was found."""
        row = await self.connection.fetchrow(_TOTALS)
        if row is None:
            raise RuntimeError("an aggregate always has a row")
        return LateTotals(*row)


@asynccontextmanager
async def find_late(
    pool: Pool, wanted: Wanted, *, job_id: int | None = None, slot_start: datetime | None = None
) -> AsyncIterator[Late]:
    """Find late readings; with `job_id` those that runs of the job missed, with `slot_start` only of that run.

    Reads the readings of the range once. Holds one connection in a transaction until it is left.
    """
    async with transaction(pool) as connection:
        await connection.execute("SELECT set_config('work_mem', '64MB', true)")
        await connection.execute(_TABLES)
        shortest = await connection.fetchval("SELECT min(grace) FROM window_grace")
        resolutions = list(wanted.resolutions_minutes)
        hull = await connection.fetchrow(_FORCED_HULL, wanted.start, wanted.end, resolutions)
        first, last = (None, None) if hull is None else hull
        await connection.execute(
            _FIND,
            wanted.start,
            wanted.end,
            resolutions,
            wanted.organization_id,
            wanted.site_id,
            wanted.meter_id,
            (shortest or timedelta(0)) + timedelta(minutes=1),
            first,
            None if last is None else last + timedelta(hours=1),
        )
        await connection.execute(_FIND_RUNS, wanted.organization_id, job_id, slot_start)
        if job_id is not None:
            await connection.execute(_ONLY_OF_RUNS)
        yield Late(connection)
