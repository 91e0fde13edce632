"""The rows of a run: closed measurements with the names that were in force, as known when the run was planned.

The unit alone is the one that was known when the window was closed, because the values were made by it.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any

from services.core.conversion import MINUTES_PER_HOUR
from services.core.manifest import Completeness
from services.core.parts import PartFormat
from services.core.records import NOT_APPLICABLE
from services.delivery.catalog_changes import CatalogChanges
from services.delivery.closed_units import ClosedUnits
from services.delivery.model import RowRange, Run, Version
from services.delivery.name_sheets import NameSheets
from services.delivery.planning import FilledWindows
from services.delivery.row_lines import Lines, RowBlock, Taken
from services.platform.kept_rows import dropped_of_run
from services.platform.postgres import Connection, Pool, transaction

# Some tenths of a second at most; the longest slot has 96 windows.
MAX_WALKED_WINDOWS = 10_000
SMALLEST_METER_ID = -(2**31)

# The form of each row is told in services.delivery.row_lines. It holds numbers of ours and nobody's text, as COPY takes
# no parameters. A numeric is exact in PostgreSQL, and round() rounds half away from zero, as all exports do; nothing is
# below zero. The time of a window comes as a list of all the starts in the slot, so that the primary key's order (time,
# organization, meter) is walked as it lies.
_LINES = """
SELECT CASE WHEN m.intervals_present >= m.intervals_expected THEN 1000000000000000000
            ELSE 2000000000000000000
                 + m.intervals_present * 1000000000000 + m.intervals_expected * 10000000000 END
       + (date_part('epoch', m.window_start - '{slot_start}'::timestamptz) / 60)::bigint * 100000000000000 + m.meter_id,
       round(m.energy_wh * {per_hour}, 2), round(m.energy_wh, 2), round(m.volume * {per_hour}, 2), round(m.volume, 2)
FROM measurement m {at_sites}
WHERE m.resolution_minutes = {resolution_minutes} AND m.window_start {at_start}
  AND m.organization_id = {organization_id}
ORDER BY m.window_start, m.meter_id
LIMIT """

_AT_SITES = """
JOIN LATERAL (
    SELECT site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= {catalog_revision}
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON c.site_id = ANY ('{{{site_ids}}}'::integer[])
"""

# How complete the rows of a run are, said of the same rows as above. Of a meter that reports less often than the
# resolution nothing was expected: what rows it has count for neither. Mostly there is no such meter, and then this
# costs no more than a look at the configurations.
_COMPLETENESS = """
WITH seldom AS MATERIALIZED (
    SELECT meter_id, valid_from, valid_until
    FROM (
        SELECT meter_id, cadence_minutes, valid_from,
               lead(valid_from, 1, 'infinity') OVER (PARTITION BY meter_id ORDER BY valid_from, revision) AS valid_until
        FROM meter_configuration
        WHERE revision <= $4 AND meter_id IN (
            SELECT meter_id FROM meter JOIN meter_configuration USING (meter_id)
            WHERE organization_id = $3 AND cadence_minutes > $1)) configured
    WHERE cadence_minutes > $1 AND valid_from < valid_until
)
SELECT coalesce(sum(m.intervals_present) FILTER (WHERE seldom.meter_id IS NULL), 0)::bigint,
       coalesce(sum(m.intervals_expected) FILTER (WHERE seldom.meter_id IS NULL), 0)::bigint
FROM measurement m
LEFT JOIN seldom ON seldom.meter_id = m.meter_id
                AND m.window_start >= seldom.valid_from AND m.window_start < seldom.valid_until
LEFT JOIN LATERAL (
    SELECT site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= $4
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON $5::integer[] IS NOT NULL
WHERE m.resolution_minutes = $1 AND m.window_start = ANY ($2::timestamptz[]) AND m.organization_id = $3
  AND ($5::integer[] IS NULL OR c.site_id = ANY ($5))
HAVING count(*) > 0
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

TakeLines = Callable[[Taken], Awaitable[int]]


class RowStore:
    """Reads the rows of runs, in the order of (time, meter)."""

    def __init__(self, pool: Pool, sheets: NameSheets | None = None, changes: CatalogChanges | None = None) -> None:
        self._pool = pool
        self._changes = changes or CatalogChanges(pool)
        self._sheets = sheets or NameSheets()
        self._units = ClosedUnits()

    async def block(
        self, run: Run, version: Version, part_format: PartFormat, rows: RowRange, *, are_units_put_right: bool = True
    ) -> RowBlock:
        """Return rows of a run, rendered; fewer than were asked for only where the run ends.

        Closed windows never change: what is read piece by piece is what one reading of everything would have given.
        `are_units_put_right` False: with the units that the run's catalog has, as all runs once were.
        Raises Unavailable while PostgreSQL is away, OperatorNeeded where a row has no name.
        """
        lines = Lines()

        async def take(data: bytes) -> None:
            lines.add(data)

        async with transaction(self._pool) as connection:
            await self._copy(connection, run, version, rows, take)
        return await self.rendered(run, version, part_format, lines.take(), are_units_put_right=are_units_put_right)

    async def read(
        self, run: Run, version: Version, rows: RowRange, lines: Lines, block_rows: int, take: TakeLines
    ) -> int:
        """Read rows of a run as they come; return how many there were, fewer than asked for only where the run ends.

        As soon as there are `block_rows` lines, `take` is given them, and says how many it is done with; the others
        wait for more to come, or are left in `lines` in the end. Meanwhile PostgreSQL goes on by itself, but not far.
        Raises as `block`, and whatever `take` raises.
        """

        async def receive(data: bytes) -> None:
            lines.add(data)
            if lines.count >= block_rows:
                taken = lines.take()
                lines.put_back(taken.behind(await take(taken)))

        async with transaction(self._pool) as connection:
            return await self._copy(connection, run, version, rows, receive)

    async def rendered(
        self, run: Run, version: Version, part_format: PartFormat, taken: Taken, *, are_units_put_right: bool = True
    ) -> RowBlock:
        """Return the rows of these lines with their names. Raises as `block`."""
        block = RowBlock(part_format, run.slot.start, taken)
        sheets, units = self._sheets, self._units
        corrected = units.known(run, version) if are_units_put_right else ()
        if corrected is None:
            async with transaction(self._pool) as connection:
                corrected = await units.corrected(connection, run, version)
        named = run._replace(catalog_revision=await self._changes.same_as(run))
        for at, first, end in block.windows():
            meters = block.meters(first, end)
            around = sheets.known(named, version, part_format.layout, at, meters)
            if around is None:
                async with transaction(self._pool) as connection:
                    around = await sheets.around(connection, named, version, part_format.layout, at, meters)
            if corrected:
                async with transaction(self._pool) as connection:
                    layout = part_format.layout
                    around = await units.put_right(connection, run, version, layout, at, meters, around, corrected)
            block.add_window(at, meters, around, first, end)
        return block

    async def _copy(
        self,
        connection: Connection,
        run: Run,
        version: Version,
        rows: RowRange,
        take: Callable[[bytes], Coroutine[Any, Any, None]],
    ) -> int:
        """Have the lines of rows given to `take`; return how many there were. Raises what `take` raises."""
        row_count = 0
        failures: list[Exception] = []

        async def receive(data: bytes) -> None:
            # The client must not hear of it: where this was the last data, it would wait for the end of a cancellation
            # that has nothing left to cancel, until the connection is given up. A piece's rest is soon there.
            if not failures:
                try:
                    await take(data)
                except Exception as error:  # noqa: BLE001 - raised below
                    failures.append(error)

        for query in _lines_queries(run, version, rows):
            limited = f"{query}{rows.row_count - row_count}"
            status = await connection.copy_from_query(
                limited, output=receive, format="text", delimiter=",", null=NOT_APPLICABLE
            )
            if failures:
                raise failures[0]
            row_count += int(status.split()[-1])
            if row_count == rows.row_count:
                break
        return row_count

    async def completeness(self, run: Run, version: Version) -> Completeness | None:
        """Return how many intervals went into the run's rows, of how many that were expected; None without rows."""
        sites = None if version.site_ids is None else list(version.site_ids)
        starts = _starts(run, version, run.slot.start)
        of = (version.resolution_minutes, starts, run.job.organization_id, run.catalog_revision, sites)
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_COMPLETENESS, *of)
        return None if row is None else Completeness(*row)

    async def are_dropped(self, run: Run) -> bool:
        """Tell whether retention has dropped rows of the run."""
        async with transaction(self._pool) as connection:
            return await dropped_of_run(connection, *run.job, run.slot.start) is not None

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


def _lines_queries(run: Run, version: Version, rows: RowRange) -> Iterator[str]:
    """Yield queries for the rest of the window in which the rows begin, and for all windows behind it.

    Together they would be one condition that the key does not serve: all rows of the window before the first one would
    be read. Each ends with LIMIT, for a number to follow.
    """
    at_sites = ""
    if version.site_ids is not None:
        site_ids = ",".join(str(int(site_id)) for site_id in version.site_ids)
        at_sites = _AT_SITES.format(catalog_revision=int(run.catalog_revision), site_ids=site_ids)
    starts = [start.isoformat() for start in _starts(run, version, rows.first_measured_at)]
    conditions = []
    if rows.first_meter_id > SMALLEST_METER_ID:
        first = starts.pop(0)
        conditions.append(f"= '{first}'::timestamptz AND m.meter_id >= {int(rows.first_meter_id)}")
    if starts:
        conditions.append("= ANY ('{" + ",".join(starts) + "}'::timestamptz[])")
    for at_start in conditions:
        yield _LINES.format(
            slot_start=run.slot.start.isoformat(),
            per_hour=MINUTES_PER_HOUR // version.resolution_minutes,
            at_sites=at_sites,
            resolution_minutes=int(version.resolution_minutes),
            at_start=at_start,
            organization_id=int(run.job.organization_id),
        )
