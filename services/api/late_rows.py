"""The rows of windows that missed a reading, as they would be now: newest versions, newest names. Read only."""

from collections.abc import AsyncIterator
from datetime import datetime

import asyncpg

from services.api.late_queries import Late
from services.core.conversion import Conversion, Utility, convert
from services.core.records import MeasurementRow
from services.platform.errors import OperatorNeeded

BATCH_ROWS = 2_000

# Minute by minute: each reading is a probe of the primary key, which begins with the time. LEFT: what is missing
# must be seen, not silently cost a row.
_ROWS = """
WITH wanted AS (
    SELECT DISTINCT resolution_minutes, window_start, meter_id FROM late_run
), counted AS (
    SELECT w.resolution_minutes, w.window_start, w.meter_id, sum(r.value)::bigint AS pulses
    FROM wanted w
    CROSS JOIN LATERAL generate_series(0, w.resolution_minutes - 1) AS minute
    JOIN reading r ON r.measured_at = w.window_start + minute * interval '1 minute' AND r.meter_id = w.meter_id
                  AND r.measured_at >= $1 AND r.measured_at < $2
    WHERE r.interval_minutes <= w.resolution_minutes AND NOT r.is_register
    GROUP BY w.resolution_minutes, w.window_start, w.meter_id
)
SELECT m.meter_id, m.meter_type, m.utility, c.name, c.unit, r.window_start, r.resolution_minutes, c.site_id,
       s.name AS site_name, r.pulses, c.units_per_pulse, c.normalization_factor, c.calorific_value
FROM counted r
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


async def corrected_rows(late: Late, start: datetime, end: datetime) -> AsyncIterator[list[MeasurementRow]]:
    """Yield, batch by batch, each window and meter that a run missed something of, once, by time and meter.

    [start, end) are the bounds of the readings. Raises OperatorNeeded where the catalog has no name for a row.
    """
    cursor = await late.connection.cursor(_ROWS, start, end)
    while batch := await cursor.fetch(BATCH_ROWS):
        yield [_row(record) for record in batch]


def _row(record: asyncpg.Record) -> MeasurementRow:
    if record["name"] is None or record["site_name"] is None:
        raise OperatorNeeded(
            f"the catalog has no name for meter {record['meter_id']} or its site at "
            f"{record['window_start'].isoformat()}: add it"
        )
    utility = Utility(record["utility"])
    conversion = Conversion(
        utility, record["units_per_pulse"], record["normalization_factor"], record["calorific_value"]
    )
    quantity = convert(record["pulses"], conversion)
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
