"""The rows of a run: closed measurements with the names that were in force, as known when the run was planned."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from services.core.blocks import Block
from services.core.conversion import MINUTES_PER_HOUR
from services.core.manifest import Completeness
from services.core.parts import PartFormat
from services.core.records import NOT_APPLICABLE
from services.core.times import iso_seconds
from services.delivery.model import RowRange, Run, Version
from services.delivery.name_sheets import NameSheets
from services.delivery.planning import FilledWindows
from services.platform.postgres import Pool, transaction

_MINUTE = timedelta(minutes=1)
# Some tenths of a second at most; the longest slot has 96 windows.
MAX_WALKED_WINDOWS = 10_000
SMALLEST_METER_ID = -(2**31)

# Each row is `1MMMMMMMMNNNNNNNNNN,power,energy,flow,volume`: minutes since the slot's start, the meter, and the values
# as they are written; whatever is the same in all rows of a meter is added here. It holds numbers of ours and nobody's
# text, as COPY takes no parameters. A numeric is exact in PostgreSQL, and round() rounds half away from zero, as all
# exports do; nothing is below zero. The time of a window comes as a list of all the starts in the slot, so that the
# primary key's order (time, organization, meter) is walked as it lies.
_LINES = """
SELECT 1000000000000000000
       + (date_part('epoch', m.window_start - '{slot_start}'::timestamptz) / 60)::bigint * 10000000000 + m.meter_id,
       round(m.energy_wh * {per_hour}, 2), round(m.energy_wh, 2), round(m.volume * {per_hour}, 2), round(m.volume, 2)
FROM measurement m {at_sites}
WHERE m.resolution_minutes = {resolution_minutes} AND m.window_start = ANY ('{{{starts}}}'::timestamptz[])
  AND m.organization_id = {organization_id} AND (m.window_start, m.meter_id) >= ('{first}'::timestamptz, {meter_id})
ORDER BY m.window_start, m.meter_id
LIMIT {limit}
"""

_AT_SITES = """
JOIN LATERAL (
    SELECT site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= {catalog_revision}
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON c.site_id = ANY ('{{{site_ids}}}'::integer[])
"""
_TIME = slice(1, 9)
_METER = slice(9, 19)
_VALUES = slice(20, None)

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


class RowBlock(Block):
    """Rows of a run from some place on, and where each of them lies."""

    def __init__(self, part_format: PartFormat, slot_start: datetime, lines: Sequence[bytes]) -> None:
        super().__init__(part_format.layout, part_format.joint)
        self._slot_start = slot_start
        self._lines = lines

    def rows(self, first: int, row_count: int) -> RowRange:
        """Return the place of `row_count` rows, in the run, of which the first is this block's row number `first`."""
        line = self._lines[first]
        return RowRange(self._slot_start + int(line[_TIME]) * _MINUTE, int(line[_METER]), row_count)


class RowStore:
    """Reads the rows of runs, in the order of (time, meter)."""

    def __init__(self, pool: Pool, sheets: NameSheets | None = None) -> None:
        self._pool = pool
        self._sheets = sheets or NameSheets()

    async def block(self, run: Run, version: Version, part_format: PartFormat, rows: RowRange) -> RowBlock:
        """Return rows of a run, rendered; fewer than were asked for only where the run ends.

        Closed windows never change: what is read piece by piece is what one reading of everything would have given.
        Raises Unavailable while PostgreSQL is away, OperatorNeeded where a row has no name.
        """
        read: list[bytes] = []

        async def take(data: bytes) -> None:
            read.append(data)

        async with transaction(self._pool) as connection:
            query = _lines_query(run, version, rows)
            await connection.copy_from_query(query, output=take, format="text", delimiter=",", null=NOT_APPLICABLE)
            lines = b"".join(read).split(b"\n")
            lines.pop()
            read.clear()
            block = RowBlock(part_format, run.slot.start, lines)
            for window in _windows(lines):
                at = run.slot.start + int(window[0][_TIME]) * _MINUTE
                meters = [line[_METER] for line in window]
                before, behind = await self._sheets.around(connection, run, version, part_format.layout, at, meters)
                block.add(iso_seconds(at).encode(), before, behind, [line[_VALUES] for line in window])
        return block

    async def completeness(self, run: Run, version: Version) -> Completeness | None:
        """Return how many intervals went into the run's rows, of how many that were expected; None without rows."""
        sites = None if version.site_ids is None else list(version.site_ids)
        starts = _starts(run, version, run.slot.start)
        of = (version.resolution_minutes, starts, run.job.organization_id, run.catalog_revision, sites)
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_COMPLETENESS, *of)
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


def _starts(run: Run, version: Version, first: datetime) -> list[datetime]:
    step = timedelta(minutes=version.resolution_minutes)
    return [first + number * step for number in range((run.slot.end - first) // step)]


def _lines_query(run: Run, version: Version, rows: RowRange) -> str:
    at_sites = ""
    if version.site_ids is not None:
        site_ids = ",".join(str(int(site_id)) for site_id in version.site_ids)
        at_sites = _AT_SITES.format(catalog_revision=int(run.catalog_revision), site_ids=site_ids)
    return _LINES.format(
        slot_start=run.slot.start.isoformat(),
        per_hour=MINUTES_PER_HOUR // version.resolution_minutes,
        at_sites=at_sites,
        resolution_minutes=int(version.resolution_minutes),
        starts=",".join(start.isoformat() for start in _starts(run, version, rows.first_measured_at)),
        organization_id=int(run.job.organization_id),
        first=rows.first_measured_at.isoformat(),
        meter_id=int(rows.first_meter_id),
        limit=int(rows.row_count),
    )


def _windows(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield the lines of each window."""
    first = 0
    while first < len(lines):
        time = lines[first][_TIME]
        end = len(lines)
        if lines[-1][_TIME] != time:
            end = bisect_right(lines, time, lo=first, key=lambda line: line[_TIME])
        yield lines[first:end]
        first = end
