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

from services.core.times import ceil_to
from services.platform.postgres import Connection

_MOST_STARTS = 2_048
_LOWEST_ID = -(2**31)


class MeasurementRow(NamedTuple):
    """A closed window of a meter, with the names that were in force."""

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


_NAMES = """
JOIN meter t ON t.meter_id = m.meter_id
JOIN LATERAL (
    SELECT name, unit, site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= {revision}
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
JOIN LATERAL (
    SELECT name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= m.window_start AND revision <= {revision}
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
"""
_CLOSING = """
JOIN window_closing w ON w.resolution_minutes = m.resolution_minutes AND w.window_start = m.window_start
    AND w.bucket = m.meter_id % $8 AND w.cut_off <= $7
"""
_MEASUREMENTS = """
SELECT m.window_start, m.meter_id, t.meter_type, t.utility, c.name, c.unit, c.site_id, s.name, m.intervals_present,
       m.intervals_expected, m.pulses, m.energy_wh, m.volume, m.flags
FROM measurement m {closing} {names}
WHERE m.resolution_minutes = $1 AND m.window_start = ANY ($2::timestamptz[]) AND m.organization_id = $3 {meters}
  AND ($4::int[] IS NULL OR c.site_id = ANY ($4)) AND (m.window_start, m.meter_id) > ($5::timestamptz, $6::int)
ORDER BY m.window_start, m.meter_id LIMIT {limit}
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
    more: list[object] = []
    closing, revision, meters = "", "9223372036854775807", ""
    if wanted.as_of is not None:
        closing, revision = _CLOSING, "w.catalog_revision"
        buckets = await connection.fetchval("SELECT coalesce(max(bucket), 0) + 1 FROM window_frontier")
        more = [wanted.as_of, buckets]
    if wanted.meter_ids is not None:
        more.append(list(wanted.meter_ids))
        meters = f"AND m.meter_id = ANY (${6 + len(more)}::int[])"
    query = _MEASUREMENTS.format(
        closing=closing, names=_NAMES.format(revision=revision), meters=meters, limit=f"${7 + len(more)}"
    )
    rows: list[asyncpg.Record] = []
    for starts in _batches(wanted):
        if len(rows) >= wanted.limit:
            break
        rows += await connection.fetch(
            query,
            *(resolution_minutes, starts, wanted.organization_id, _ints(wanted.site_ids), *_after(wanted)),
            *(*more, wanted.limit - len(rows)),
        )
    return [MeasurementRow(*row) for row in rows]


async def readings(connection: Connection, wanted: Wanted) -> list[ReadingRow]:
    """Return the newest version of each reading (as known at `as_of`) by (time, meter), at most `limit`."""
    one = "SELECT * FROM {table} WHERE measured_at = ANY ($1::timestamptz[]) AND meter_id = ANY ($2::int[]) {known}"
    versions = one.format(table="reading", known="")
    more: list[object] = []
    if wanted.as_of is not None:
        more = [wanted.as_of]
        both = (one.format(table=table, known="AND arrived_at <= $7") for table in ("reading", "reading_superseded"))
        versions = " UNION ALL ".join(both)
    query = _READINGS.format(versions=versions)
    rows: list[asyncpg.Record] = []
    meter_ids = list(wanted.meter_ids or [])
    for starts in _batches(wanted):
        if len(rows) >= wanted.limit:
            break
        rows += await connection.fetch(
            query,
            *(starts, meter_ids, *_after(wanted), _ints(wanted.site_ids), wanted.limit - len(rows), *more),
        )
    return [ReadingRow(*row) for row in rows]


def _batches(wanted: Wanted) -> Iterator[list[datetime]]:
    """Yield the starts that are asked for, each time twice as many."""
    first = wanted.start if wanted.after is None else max(wanted.start, wanted.after[0])
    start, count = ceil_to(first, wanted.step), 1
    while start < wanted.until:
        batch: list[datetime] = []
        while len(batch) < count and start < wanted.until:
            batch.append(start)
            start += wanted.step
        yield batch
        count = min(2 * count, _MOST_STARTS)


def _after(wanted: Wanted) -> tuple[datetime, int]:
    return wanted.after or (wanted.start - wanted.step, _LOWEST_ID)


def _ints(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)
