"""Measurements and readings by meter, site and time, page by page. Read only.

The keys of both tables begin with the time, so what is asked for is walked start by start: a few starts first, more at
a time as long as they do not fill the page. Whole ranges are never sorted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import asyncpg

from services.api.measurement_json import NAMES, PREPARED, window_object
from services.core.times import ceil_to
from services.platform.postgres import Connection

_MOST_STARTS = 512
_FEW_METERS = 100
_MOST_PROBES = 20_000
"""So many times at most one statement looks for a meter at a start."""
_LOWEST_ID = -(2**31)


class MeasurementRow(NamedTuple):
    """A closed window of a meter, with the names that were in force and the unit in which it was counted."""

    window_start: datetime
    meter_id: int
    meter_type: str
    utility: str
    meter_name: str
    meter_unit: str
    site_id: int
    site_name: str
    intervals_present: int
    intervals_expected: int
    pulses: int
    energy_wh: Decimal | None
    volume: Decimal | None
    flags: int


class ReadingRow(NamedTuple):
    """A version of a reading."""

    measured_at: datetime
    meter_id: int
    interval_minutes: int
    value: int
    is_register: bool
    revision: int
    arrived_at: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; `meter_ids` None: all of the organization's, `site_ids` None: wherever they stand."""

    organization_id: int
    start: datetime
    until: datetime
    step: timedelta
    meter_ids: Sequence[int] | None
    site_ids: Sequence[int] | None
    as_of: datetime | None
    after: tuple[datetime, int] | None
    limit: int

    @property
    def is_of_few(self) -> bool:
        """Tell whether so few meters are asked for that each is looked up at each start."""
        return self.meter_ids is not None and len(self.meter_ids) <= _FEW_METERS


class JsonPage(NamedTuple):
    """JSON objects with commas between them; `last`: where the page ended, if there is more."""

    objects: str
    last: tuple[datetime, int] | None


class _Statement(NamedTuple):
    """A statement that reads closed windows, and what stands for its number of rows."""

    text: str
    more: Sequence[object]
    limit: str

    def parameters(
        self, resolution_minutes: int, wanted: Wanted, starts: Sequence[datetime], limit: int
    ) -> Sequence[object]:
        """Return the parameters for a stretch of starts."""
        site_ids = _ints(wanted.site_ids)
        first = (resolution_minutes, starts, wanted.organization_id, site_ids, *_after(wanted))
        return (*first, *self.more, limit)


_NAMES = """
JOIN (SELECT meter_id, meter_type, utility FROM meter) t ON t.meter_id = m.meter_id
JOIN LATERAL (
    SELECT name, unit, site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= {revision}
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
JOIN LATERAL (
    SELECT name AS site_name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= m.window_start AND revision <= {revision}
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
"""
# The same by periods that are made once, for few meters with many windows each.
_PERIODS = """
WITH t AS MATERIALIZED (
    SELECT meter_id, meter_type, utility FROM meter WHERE meter_id = ANY ({meters})
), c AS MATERIALIZED (
    SELECT meter_id, name, unit, site_id, valid_from,
           lead(valid_from, 1, 'infinity') OVER (PARTITION BY meter_id ORDER BY valid_from) AS valid_until
    FROM (SELECT DISTINCT ON (meter_id, valid_from) * FROM meter_configuration
          WHERE meter_id = ANY ({meters}) ORDER BY meter_id, valid_from, revision DESC) newest
), s AS MATERIALIZED (
    SELECT site_id, name, valid_from,
           lead(valid_from, 1, 'infinity') OVER (PARTITION BY site_id ORDER BY valid_from) AS valid_until
    FROM (SELECT DISTINCT ON (site_id, valid_from) * FROM site_description
          WHERE site_id IN (SELECT site_id FROM c) ORDER BY site_id, valid_from, revision DESC) newest
), d AS MATERIALIZED (
    SELECT *, {json} FROM (
        SELECT t.*, c.name, c.unit, c.site_id, s.name AS site_name, greatest(c.valid_from, s.valid_from) AS valid_from,
               least(c.valid_until, s.valid_until) AS valid_until
        FROM t JOIN c USING (meter_id) JOIN s USING (site_id)) named
)
"""
_NAMES_OF_PERIODS = (
    "JOIN d ON d.meter_id = m.meter_id AND d.valid_from <= m.window_start AND m.window_start < d.valid_until"
)
# Values are made by the factors that were known at the closing, so the unit is the one that was known then; where there
# is no proof of it any more, the newest one. Hardly any meter ever had two units.
_UNIT = """CASE WHEN EXISTS (SELECT FROM meter_configuration o WHERE o.meter_id = m.meter_id AND o.unit <> c.unit)
    THEN coalesce((
    SELECT u.unit
    FROM window_closing k JOIN meter_configuration u ON u.revision <= k.catalog_revision
    WHERE k.resolution_minutes = m.resolution_minutes AND k.window_start = m.window_start
      AND k.bucket = m.meter_id % (SELECT max(bucket) + 1 FROM window_frontier)
      AND u.meter_id = m.meter_id AND u.valid_from <= m.window_start
    ORDER BY u.valid_from DESC, u.revision DESC LIMIT 1), c.unit) ELSE c.unit END"""
_HAD_SEVERAL_UNITS = """
SELECT EXISTS (SELECT FROM meter_configuration WHERE meter_id = ANY ($1::int[]) GROUP BY meter_id
               HAVING min(unit) <> max(unit))
"""
_CLOSING = """
JOIN window_closing w ON w.resolution_minutes = m.resolution_minutes AND w.window_start = m.window_start
    AND w.bucket = m.meter_id % $8 AND w.cut_off <= $7
"""
# Of many meters whole stretches are read.
_STRETCH = "(SELECT * FROM {table} WHERE {time} = ANY ({starts}) AND {condition})"
# Few meters are looked up start by start. Given a list, PostgreSQL would weigh every start against every partition
# before it begins, which takes several times as long as reading; here it weighs but the first and the last.
_EACH_START = """(SELECT one.*
    FROM generate_series(({starts})[1], ({starts})[2], {minutes} * interval '1 minute') AS start CROSS JOIN LATERAL (
        SELECT * FROM {table}
        WHERE {time} = start AND {time} >= ({starts})[1] AND {time} <= ({starts})[2] AND {condition}
        OFFSET 0) AS one)"""
_MEASUREMENTS = """
{periods}
SELECT m.window_start, m.meter_id, meter_type, utility, name, {unit} AS unit, site_id, site_name, m.intervals_present,
       m.intervals_expected, m.pulses, m.energy_wh, m.volume, m.flags{column}
FROM {source} m {closing} {names}
WHERE ($4::int[] IS NULL OR site_id = ANY ($4)) AND (m.window_start, m.meter_id) > ($5::timestamptz, $6::int)
ORDER BY m.window_start, m.meter_id LIMIT {limit}
"""
# Of one window more than fit, and where the page ends if it is full.
_JSON = """
SELECT count(*) AS found,
       string_agg({json}, ',' ORDER BY window_start, meter_id) FILTER (WHERE number < {limit}) AS objects,
       max(window_start) FILTER (WHERE number = {limit} - 1) AS last_start,
       max(meter_id) FILTER (WHERE number = {limit} - 1) AS last_meter
FROM (SELECT *, row_number() OVER (ORDER BY window_start, meter_id) AS number FROM ({measurements}) AS m) AS m
"""
_READINGS = """
SELECT DISTINCT ON (measured_at, meter_id) measured_at, meter_id, interval_minutes, value, is_register, revision,
       arrived_at
FROM ({versions}) v
WHERE (measured_at, meter_id) > ($3::timestamptz, $4::int)
  AND ($5::int[] IS NULL OR (
      SELECT site_id FROM meter_configuration c
      WHERE c.meter_id = v.meter_id AND c.valid_from <= v.measured_at
      ORDER BY c.valid_from DESC, c.revision DESC LIMIT 1) = ANY ($5))
ORDER BY measured_at, meter_id, revision DESC, arrived_at DESC, source_topic DESC, source_partition DESC,
         source_offset DESC, source_place DESC
LIMIT $6
"""


async def meters_of_sites(connection: Connection, organization_id: int, site_ids: Sequence[int]) -> list[int]:
    """Return the meters that stand, or ever stood, at the sites."""
    rows = await connection.fetch(
        "SELECT DISTINCT meter_id FROM meter_configuration JOIN meter USING (meter_id) "
        "WHERE site_id = ANY ($2::int[]) AND organization_id = $1",
        *(organization_id, list(site_ids)),
    )
    return sorted(row["meter_id"] for row in rows)


async def own_meters(connection: Connection, organization_id: int, meter_ids: Sequence[int]) -> set[int]:
    """Return those of the meters that are the organization's."""
    rows = await connection.fetch(
        "SELECT meter_id FROM meter WHERE organization_id = $1 AND meter_id = ANY ($2::int[])",
        *(organization_id, list(meter_ids)),
    )
    return {row["meter_id"] for row in rows}


async def closed_until(connection: Connection, resolution_minutes: int) -> datetime | None:
    """Return the start of the first window that is still open; None before the first closing."""
    found: datetime | None = await connection.fetchval(
        "SELECT closed_until FROM window_closed WHERE resolution_minutes = $1", resolution_minutes
    )
    return found


async def measurements(connection: Connection, resolution_minutes: int, wanted: Wanted) -> list[MeasurementRow]:
    """Return closed windows by (start, meter), at most `limit`.

    With `as_of`: those whose cut-off had passed by then, with the names that were known when they were closed.
    """
    query = await _statement(connection, wanted, has_periods=await _has_periods(connection, wanted))
    rows: list[asyncpg.Record] = []
    for starts in _batches(wanted):
        if len(rows) >= wanted.limit:
            break
        left = wanted.limit - len(rows)
        rows += await connection.fetch(query.text, *query.parameters(resolution_minutes, wanted, starts, left))
    return [MeasurementRow(*row) for row in rows]


async def measurements_json(connection: Connection, resolution_minutes: int, wanted: Wanted) -> JsonPage:
    """Return the same windows but the last, if there are as many as `limit`, as JSON objects."""
    has_periods = await _has_periods(connection, wanted)
    query = await _statement(connection, wanted, f", {PREPARED}" if has_periods else "", has_periods=has_periods)
    text = _JSON.format(
        json=window_object(PREPARED if has_periods else NAMES), limit=query.limit, measurements=query.text
    )
    objects: list[str] = []
    last: tuple[datetime, int] | None = None
    left = wanted.limit
    for starts in _batches(wanted):
        row = await connection.fetchrow(text, *query.parameters(resolution_minutes, wanted, starts, left))
        assert row is not None  # noqa: S101 - an aggregate always has a row
        if row["objects"] is not None:
            objects.append(row["objects"])
        if row["last_start"] is not None:
            last = row["last_start"], row["last_meter"]
        left -= row["found"]
        if not left:
            return JsonPage(",".join(objects), last)
    return JsonPage(",".join(objects), None)


async def _has_periods(connection: Connection, wanted: Wanted) -> bool:
    """Tell whether names are those of periods that are made once: few meters, of which none ever changed its unit."""
    if not wanted.is_of_few or wanted.meter_ids is None or wanted.as_of is not None:
        return False
    return not await connection.fetchval(_HAD_SEVERAL_UNITS, list(wanted.meter_ids))


async def _statement(connection: Connection, wanted: Wanted, column: str = "", *, has_periods: bool) -> _Statement:
    """Return the statement that reads closed windows, with one more column."""
    more: list[object] = []
    closing, revision, unit, meters, periods = "", "9223372036854775807", _UNIT, "", ""
    condition = "resolution_minutes = $1 AND organization_id = $3"
    if wanted.as_of is not None:
        closing, revision, unit = _CLOSING, "w.catalog_revision", "c.unit"
        buckets = await connection.fetchval("SELECT coalesce(max(bucket), 0) + 1 FROM window_frontier")
        more = [wanted.as_of, buckets]
    if wanted.meter_ids is not None:
        more.append(list(wanted.meter_ids))
        meters = f"${6 + len(more)}::int[]"
        condition += f" AND meter_id = ANY ({meters})"
    names = _NAMES.format(revision=revision)
    if has_periods:
        unit, names, periods = "unit", _NAMES_OF_PERIODS, _PERIODS.format(meters=meters, json=f"{NAMES} AS {PREPARED}")
    place = 7 + len(more)
    limit = f"${place}::bigint"
    source = _source(wanted, "measurement", "window_start", "$2", condition)
    text = _MEASUREMENTS.format(
        column=column, periods=periods, closing=closing, names=names, unit=unit, source=source, limit=limit
    )
    return _Statement(text, more, limit)


async def readings(connection: Connection, wanted: Wanted) -> list[ReadingRow]:
    """Return the newest version of each reading (as known at `as_of`) by (time, meter), at most `limit`."""
    tables, condition, more = ["reading"], "meter_id = ANY ($2::int[])", list[object]()
    if wanted.as_of is not None:
        tables, more = ["reading", "reading_superseded"], [wanted.as_of]
        condition += " AND arrived_at <= $7"
    sources = (_source(wanted, table, "measured_at", "$1", condition) for table in tables)
    query = _READINGS.format(versions=" UNION ALL ".join(sources))
    rows: list[asyncpg.Record] = []
    meter_ids = list(wanted.meter_ids or [])
    for starts in _batches(wanted):
        if len(rows) >= wanted.limit:
            break
        rows += await connection.fetch(
            query,
            *(starts, meter_ids, *_after(wanted), _ints(wanted.site_ids), wanted.limit - len(rows)),
            *more,
        )
    return [ReadingRow(*row) for row in rows]


def _source(wanted: Wanted, table: str, time: str, starts: str, condition: str) -> str:
    """Return how the table is read at the starts of a batch."""
    form = _EACH_START if wanted.is_of_few else _STRETCH
    array, minutes = f"{starts}::timestamptz[]", wanted.step // timedelta(minutes=1)
    return form.format(table=table, time=time, starts=array, condition=condition, minutes=minutes)


def _batches(wanted: Wanted) -> Iterator[list[datetime]]:
    """Yield the starts that are asked for, each time twice as many.

    Of few meters: the first and the last of at once as many as fill a page.
    """
    first = wanted.start if wanted.after is None else max(wanted.start, wanted.after[0])
    start, count, most = ceil_to(first, wanted.step), 1, _MOST_STARTS
    if wanted.is_of_few:
        meters = max(1, len(wanted.meter_ids or ()))
        most = _MOST_PROBES // meters
        count = min(most, wanted.limit // meters + 1)
    while start < wanted.until:
        end = min(wanted.until, start + count * wanted.step)
        steps = -((start - end) // wanted.step)
        if wanted.is_of_few:
            yield [start, start + (steps - 1) * wanted.step]
        else:
            yield [start + number * wanted.step for number in range(steps)]
        start += steps * wanted.step
        count = min(2 * count, most)


def _after(wanted: Wanted) -> tuple[datetime, int]:
    return wanted.after or (wanted.start - wanted.step, _LOWEST_ID)


def _ints(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)
