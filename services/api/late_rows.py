"""The rows of windows that missed a reading, as they would be now: newest versions, newest names. Read only."""

import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import asyncpg

from services.api.late_queries import Late
from services.core.conversion import Conversion, Utility, convert
from services.core.counting import EventKind, KnownReading, close_window
from services.core.readings import INTERVALS_MINUTES
from services.core.records import MeasurementRow
from services.core.registers import DEFAULT_LARGEST_SHARE, Register
from services.core.times import parse_instant
from services.platform.errors import OperatorNeeded
from services.platform.postgres import Connection

BATCH_WINDOWS = 2_000

# A register that came late moves consumption from the row after its window to its own: the row after it changes, too.
_WANT = """
WITH missed AS (
    SELECT DISTINCT resolution_minutes, window_start, meter_id FROM late_run
), following AS (
    SELECT DISTINCT resolution_minutes, later.window_start, meter_id
    FROM missed
    CROSS JOIN LATERAL (
        SELECT window_start FROM measurement
        WHERE meter_id = missed.meter_id AND resolution_minutes = missed.resolution_minutes
          AND window_start > missed.window_start AND register_end IS NOT NULL
        ORDER BY window_start LIMIT 1) later
    WHERE EXISTS (SELECT FROM meter_register r
                  WHERE r.meter_id = missed.meter_id AND r.resolution_minutes = missed.resolution_minutes)
)
INSERT INTO late_window
SELECT resolution_minutes, window_start, meter_id, bool_or(is_missed)
FROM (SELECT *, true AS is_missed FROM missed UNION ALL SELECT *, false FROM following) AS wanted
GROUP BY resolution_minutes, window_start, meter_id
"""

# Minute by minute: each reading is a probe of the primary key, which begins with the time. LEFT: what is missing must
# be seen, not silently cost a row.
_WINDOWS = """
WITH known AS (
    SELECT w.resolution_minutes, w.window_start, w.meter_id, w.is_missed, array_agg(r.measured_at) AS measured,
           array_agg(r.interval_minutes) AS intervals, array_agg(r.value) AS readings,
           array_agg(r.is_register) AS registers
    FROM late_window w
    CROSS JOIN LATERAL generate_series(0, w.resolution_minutes - 1) AS minute
    JOIN reading r ON r.measured_at = w.window_start + minute * interval '1 minute' AND r.meter_id = w.meter_id
    WHERE r.interval_minutes <= w.resolution_minutes AND r.measured_at >= $1 AND r.measured_at < $2
    GROUP BY w.resolution_minutes, w.window_start, w.meter_id, w.is_missed
)
SELECT m.meter_id, m.meter_type, m.utility, c.name, c.unit, r.window_start, r.resolution_minutes, c.site_id,
       s.name AS site_name, c.units_per_pulse, c.normalization_factor, c.calorific_value, c.register_modulus,
       r.is_missed, r.measured, r.intervals, r.readings, r.registers, m.organization_id
FROM known r
JOIN meter m USING (meter_id)
LEFT JOIN LATERAL (
    SELECT * FROM meter_configuration
    WHERE meter_id = r.meter_id AND valid_from <= r.window_start
      AND revision <= (SELECT revision FROM catalog_revision)
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (
    SELECT name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= r.window_start
      AND revision <= (SELECT revision FROM catalog_revision)
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
ORDER BY r.window_start, r.meter_id, r.resolution_minutes
"""

# Where the meter's registers stood before a window, as the closed windows say: by a row, or by the first register of
# all, which has none; and the plausible share that the windows were closed with. Where retention has dropped what came
# before ($4: all before this), the next row's own word for its beginning has to do.
_BEFORE = """
SELECT window_start, kind, at, detail,
       (SELECT register_share FROM window_closing
        WHERE resolution_minutes = $2 AND window_start <= $3 AND register_share IS NOT NULL
        ORDER BY window_start DESC LIMIT 1) AS share, value
FROM (
    (SELECT window_start, 'row' AS kind, register_end_at AS at, NULL::jsonb AS detail, register_end AS value
     FROM measurement
     WHERE meter_id = $1 AND resolution_minutes = $2 AND window_start < $3 AND register_end IS NOT NULL
     ORDER BY window_start DESC LIMIT 1)
    UNION ALL
    (SELECT window_start, kind, NULL, detail, NULL FROM meter_event
     WHERE meter_id = $1 AND resolution_minutes = $2 AND window_start < $3
       AND kind IN ('registers_begin', 'pulses_begin')
     ORDER BY window_start DESC LIMIT 1)
    UNION ALL
    (SELECT $4::timestamptz - interval '1 microsecond', 'row', register_start_at, NULL, register_start FROM measurement
     WHERE meter_id = $1 AND resolution_minutes = $2 AND window_start >= $3 AND register_end IS NOT NULL
       AND $4 IS NOT NULL AND register_start_at <= $3
     ORDER BY window_start LIMIT 1)
) AS said
ORDER BY window_start DESC, kind DESC LIMIT 1
"""
_REGISTER_AT = """
SELECT value FROM reading
WHERE meter_id = $1 AND measured_at = ANY ($2::timestamptz[]) AND is_register
  AND measured_at + interval_minutes * interval '1 minute' = $3
"""
_STORED_PULSES = """
SELECT pulses FROM measurement
WHERE resolution_minutes = $1 AND window_start = $2 AND organization_id = $3 AND meter_id = $4
"""


async def corrected_rows(late: Late) -> AsyncIterator[list[MeasurementRow]]:
    """Yield, batch by batch, each window and meter that a run missed something of, once, by time and meter.

    Among them the rows after a register that came late, where these hold something else now. Raises OperatorNeeded
    where the catalog has no name for a row.
    """
    connection = late.connection
    await connection.execute(
        "CREATE TEMPORARY TABLE late_window (resolution_minutes integer, window_start timestamptz, meter_id integer, "
        "is_missed boolean) ON COMMIT DROP"
    )
    await connection.execute(_WANT)
    await connection.execute("ANALYZE late_window")
    bounds = await connection.fetchrow("SELECT min(window_start), max(window_start) FROM late_window")
    if bounds is None or bounds[0] is None:
        return
    kept = await connection.fetch("SELECT resolution_minutes, dropped_until FROM measurement_retention")
    counter = _Counter(connection, {row["resolution_minutes"]: row["dropped_until"] for row in kept})
    cursor = await connection.cursor(_WINDOWS, bounds[0], bounds[1] + timedelta(hours=1))
    while batch := await cursor.fetch(BATCH_WINDOWS):
        rows = [await counter.row(record) for record in batch]
        yield [row for row in rows if row is not None]


class _Counter:
    """Counts windows in the order of time, and remembers where it left each meter's registers."""

    def __init__(self, connection: Connection, dropped_until: Mapping[int, datetime | None]) -> None:
        self._connection = connection
        self._dropped_until = dropped_until
        self._registers: dict[tuple[int, int], tuple[datetime, Register | None]] = {}

    async def row(self, record: asyncpg.Record) -> MeasurementRow | None:
        """Return the row of a window; None where there is none, or none that changed."""
        key = (record["meter_id"], record["resolution_minutes"])
        readings = [
            KnownReading(*one)
            for one in zip(
                record["measured"], record["intervals"], record["readings"], record["registers"], strict=True
            )
        ]
        before, share = None, DEFAULT_LARGEST_SHARE
        if any(record["registers"]):
            dropped_until = self._dropped_until.get(key[1])
            if dropped_until is not None and record["window_start"] < dropped_until:
                return None  # nothing tells any more where the registers stood
            before, share = await self._before(key, record["window_start"])
        closed = close_window(record["window_start"], key[1], readings, before, record["register_modulus"], share)
        self._registers[key] = (record["window_start"], closed.register)
        if closed.content is None:
            return None
        if not record["is_missed"]:
            place = (key[1], record["window_start"], record["organization_id"], key[0])
            if await self._connection.fetchval(_STORED_PULSES, *place) == closed.content.pulses:
                return None
        return _row(record, closed.content.pulses)

    async def _before(self, key: tuple[int, int], window_start: datetime) -> tuple[Register | None, Decimal]:
        """Return where the registers stood before a window, by the newest versions, and the plausible share."""
        said = await self._connection.fetchrow(_BEFORE, *key, window_start, self._dropped_until.get(key[1]))
        share = DEFAULT_LARGEST_SHARE if said is None or said["share"] is None else said["share"]
        counted = self._registers.get(key)
        if counted is not None and (said is None or counted[0] >= said["window_start"]):
            return counted[1], share
        if said is None or said["kind"] == EventKind.PULSES_BEGIN:
            return None, share
        at = said["at"] or parse_instant(json.loads(said["detail"])["at"])
        starts = [at - timedelta(minutes=minutes) for minutes in INTERVALS_MINUTES]
        value = await self._connection.fetchval(_REGISTER_AT, key[0], starts, at)
        value = said["value"] if value is None else value
        return (None if value is None else Register(at, value)), share


def _row(record: asyncpg.Record, pulses: int) -> MeasurementRow:
    if record["name"] is None or record["site_name"] is None:
        raise OperatorNeeded(
            f"the catalog has no name for meter {record['meter_id']} or its site at "
            f"{record['window_start'].isoformat()}: add it"
        )
    utility = Utility(record["utility"])
    factors = (record["units_per_pulse"], record["normalization_factor"], record["calorific_value"])
    quantity = convert(pulses, Conversion(utility, *factors))
    return MeasurementRow(
        record["meter_id"],
        record["meter_type"],
        utility,
        record["name"],
        record["unit"],
        record["window_start"],
        record["resolution_minutes"],
        record["site_id"],
        record["site_name"],
        quantity.energy_wh,
        quantity.volume,
    )
