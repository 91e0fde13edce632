"""The rows of a run: closed measurements with the names that were in force, as known when the run was planned."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta

import asyncpg

from services.core.conversion import Utility
from services.core.manifest import Completeness
from services.core.records import MeasurementRow
from services.delivery.model import RowRange, Run, Version
from services.delivery.planning import FilledWindows
from services.platform.errors import OperatorNeeded
from services.platform.postgres import Pool, transaction

BATCH_ROWS = 2_000
# Some tenths of a second at most; the longest slot has 96 windows.
MAX_WALKED_WINDOWS = 10_000
_SMALLEST_METER_ID = -(2**31)

# The time of a window comes as a list of all the starts in the slot, so that the primary key's order (time,
# organization, meter) is walked as it lies. LEFT: a name that is missing must be seen, not silently cost a row.
_ROWS = """
SELECT m.meter_id, t.meter_type, t.utility, c.name, c.unit, m.window_start, c.site_id, s.name AS site_name,
       m.energy_wh, m.volume
FROM measurement m
JOIN meter t ON t.meter_id = m.meter_id
LEFT JOIN LATERAL (
    SELECT name, unit, site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= $4
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (
    SELECT name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= m.window_start AND revision <= $4
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
WHERE m.resolution_minutes = $1 AND m.window_start = ANY ($2::timestamptz[]) AND m.organization_id = $3
  AND ($5::integer[] IS NULL OR c.site_id = ANY ($5))
  AND (m.window_start, m.meter_id) >= ($6::timestamptz, $7::integer)
ORDER BY m.window_start, m.meter_id
LIMIT $8
"""

# How complete the rows of a run are, said of the same rows as above.
_COMPLETENESS = """
SELECT sum(m.intervals_present)::bigint, sum(m.intervals_expected)::bigint
FROM measurement m
LEFT JOIN LATERAL (
    SELECT site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= $4
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON $5::integer[] IS NOT NULL
WHERE m.resolution_minutes = $1 AND m.window_start = ANY ($2::timestamptz[]) AND m.organization_id = $3
  AND ($5::integer[] IS NULL OR c.site_id = ANY ($5))
"""

# Walks from window to window that anybody has rows in, which the primary key makes one probe each, and probes for the
# organization's own: stretches without any rows cost nothing, the rows of others one probe a window. The bounds are
# said again and again so that partitions are ruled out before the walk, not at each step.
_FILLED_WINDOWS = """
WITH RECURSIVE step (number, window_start, is_ours) AS (
    SELECT 0, $3::timestamptz - interval '1 microsecond', NULL::boolean
    UNION ALL
    SELECT step.number + 1, following.window_start, ours.is_ours
    FROM step
    CROSS JOIN LATERAL (
        SELECT window_start FROM measurement
        WHERE resolution_minutes = $1 AND window_start > step.window_start
          AND window_start >= $3 AND window_start < $4
        ORDER BY window_start LIMIT 1) following
    LEFT JOIN LATERAL (
        SELECT true AS is_ours FROM measurement
        WHERE resolution_minutes = $1 AND window_start = following.window_start AND organization_id = $2
          AND window_start >= $3 AND window_start < $4
        LIMIT 1) ours ON true
    WHERE step.number < $5
)
SELECT coalesce(array_agg(window_start ORDER BY window_start) FILTER (WHERE is_ours), '{}'),
       CASE WHEN max(number) = $5 THEN max(window_start) ELSE $4 END
FROM step
"""


class RowStore:
    """Reads the rows of runs, in the order of (time, meter)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def stream(self, run: Run, version: Version) -> AsyncGenerator[list[MeasurementRow], None]:
        """Yield all rows of a run in batches; only one batch is held.

        Raises Unavailable while PostgreSQL is away, OperatorNeeded where a row has no name.
        """
        beginning = RowRange(run.slot.start, _SMALLEST_METER_ID, 0)
        async with transaction(self._pool) as connection:
            cursor = await connection.cursor(_ROWS, *_arguments(run, version, beginning, limit=None))
            while batch := await cursor.fetch(BATCH_ROWS):
                yield _rows(batch, version.resolution_minutes)

    async def part(self, run: Run, version: Version, rows: RowRange) -> list[MeasurementRow]:
        """Return the rows of one part. Raises as `stream`."""
        async with transaction(self._pool) as connection:
            found = await connection.fetch(_ROWS, *_arguments(run, version, rows, limit=rows.row_count))
        return _rows(found, version.resolution_minutes)

    async def completeness(self, run: Run, version: Version) -> Completeness | None:
        """Return how many intervals went into the run's rows, of how many that were expected; None without rows."""
        beginning = RowRange(run.slot.start, _SMALLEST_METER_ID, 0)
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_COMPLETENESS, *_arguments(run, version, beginning, limit=None)[:5])
        return None if row is None or row[0] is None else Completeness(*row)

    async def filled_windows(
        self, organization_id: int, resolution_minutes: int, start: datetime, end: datetime
    ) -> FilledWindows:
        """Return the windows from `start` on, all before `end` or before some earlier instant, that hold its rows."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(
                _FILLED_WINDOWS, resolution_minutes, organization_id, start, end, MAX_WALKED_WINDOWS
            )
        if row is None:
            raise RuntimeError("an aggregate always has a row")
        return FilledWindows(resolution_minutes, *row)


def _arguments(run: Run, version: Version, beginning: RowRange, *, limit: int | None) -> tuple[object, ...]:
    step = timedelta(minutes=version.resolution_minutes)
    first = beginning.first_measured_at
    starts = [first + number * step for number in range((run.slot.end - first) // step)]
    sites = None if version.site_ids is None else list(version.site_ids)
    return (
        version.resolution_minutes,
        starts,
        run.job.organization_id,
        run.catalog_revision,
        sites,
        first,
        beginning.first_meter_id,
        limit,
    )


def _rows(batch: Sequence[asyncpg.Record], resolution_minutes: int) -> list[MeasurementRow]:
    rows = []
    for meter_id, meter_type, utility, name, unit, window_start, site_id, site_name, energy_wh, volume in batch:
        if name is None or site_name is None:
            missing = f"meter {meter_id}" if name is None else f"site {site_id}"
            raise OperatorNeeded(f"the catalog has no name for {missing} at {window_start.isoformat()}")
        rows.append(
            MeasurementRow(
                meter_id,
                meter_type,
                Utility(utility),
                name,
                unit,
                window_start,
                resolution_minutes,
                site_id,
                site_name,
                energy_wh,
                volume,
            )
        )
    return rows
