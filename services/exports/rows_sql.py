"""The statements that give the rows of one chunk, in the very bytes of the file.

They count by the expressions that closing itself is made of, so an export says what closing would say, were the windows
closed with the readings that are known now. Names, rounding and the literal N/A are those of every other export
(`services.core.records`, `csv_records`).

Parameters: those of `counting` ($1 resolution in minutes, $2 and $3 the range of window starts, $4 and $5 buckets: 1
and NULL, $6 unused, $7 the plausible share of a register's modulus), $8 the meters, $9 the catalog revision, $10 the
sites (NULL: all), $11 the instant of knowledge (NULL: now), $12 the organization, $13 the export, and in statements
that read selectively $14 all minutes of the range.
"""

from collections.abc import Mapping

from services.core.csv_records import CSV_HEADER
from services.core.manual_export import ExportFormat
from services.windowing.counting_sql import MANY_WINDOWS, counting

CSV_HEAD = CSV_HEADER.encode() + b"\n"
"""What a CSV file begins with. Lines end with a line feed."""

# Nothing tells the planner how many readings there are, so it must not bet on few: joins and groups are hashed. Reading
# meter by meter is a walk through the index, no join.
PLAN_FOR_THE_CHUNK = """
    SELECT set_config('enable_nestloop', 'off', true), set_config('enable_mergejoin', 'off', true),
           set_config('work_mem', '64MB', true), set_config('max_parallel_workers_per_gather', '0', true)
"""

# Every parameter must stand somewhere, lest its type is unknown.
_KNOWN = """known AS MATERIALIZED (
    SELECT $9::bigint AS revision, $4::integer, $5::integer[], $6::interval, $7::numeric, $10::integer[],
           $11::timestamptz, $13::bigint
)"""

# A meter is judged by where the last chunk left its registers.
_PREVIOUS = """
    SELECT meter_id, register_value, register_at FROM manual_export_register
    WHERE organization_id = $12::integer AND export_id = $13::bigint"""

# The sum keeps a search through the key for each of thousands of meters from looking cheap.
_OF_METERS = "(meter_id + 0) = ANY ($8::integer[])"
_OF_METERS_ONE_BY_ONE = "meter_id = ANY ($8::integer[]) AND measured_at = ANY ($14::timestamptz[])"
_KNOWN_THEN = " AND arrived_at <= $11::timestamptz"

_STANDS = """, stands AS (
    INSERT INTO manual_export_register (organization_id, export_id, meter_id, register_value, register_at)
    SELECT DISTINCT ON (meter_id) $12::integer, $13::bigint, meter_id, register_end, register_end_at
    FROM by_kind LEFT JOIN register_window USING (window_start, meter_id)
    ORDER BY meter_id, window_start DESC
    ON CONFLICT (organization_id, export_id, meter_id) DO UPDATE
    SET register_value = excluded.register_value, register_at = excluded.register_at
)"""


def _defused(text: str) -> str:
    """Return a text with an apostrophe before what a spreadsheet would take for a formula, as `csv_records` has it."""
    return f"CASE WHEN {text} ~ '^[-=+@\\t\\r\\n]' THEN '''' || {text} ELSE {text} END"


# The spans in which a meter's names, its site and its site's name stay the same, and what of its lines is so, too.
_DESCRIBED = f"""described AS MATERIALIZED (
    SELECT meter_id, meter_type, c.name AS meter_name, unit, site_id, s.name AS site_name,
           greatest(c.valid_from, s.valid_from) AS begins, least(c.valid_until, s.valid_until) AS ends,
           '{{"METER_ID":' || meter_id || ',"METER_TYPE":' || to_json(meter_type) || ',"METER_NAME":' || to_json(c.name)
           || ',"METER_UNIT":' AS json_to_unit,
           to_json(unit) || ',"MEASUREMENT_TIME(UTC)":"' AS json_unit,
           '","RESOLUTION(min)":' || $1::integer || ',"SITE_ID":' || site_id || ',"SITE_NAME":' || to_json(s.name)
           || ',"POWER(W)":"' AS json_behind,
           {_defused("meter_type")} AS csv_type, {_defused("c.name")} AS csv_name, {_defused("s.name")} AS csv_site
    FROM (
        SELECT meter_id, valid_from, name, unit, site_id,
               lead(valid_from, 1, 'infinity') OVER (PARTITION BY meter_id ORDER BY valid_from, revision) AS valid_until
        FROM meter_configuration
        WHERE revision <= $9::bigint AND meter_id = ANY ($8::integer[])
    ) AS c
    JOIN meter USING (meter_id)
    JOIN (
        SELECT site_id, valid_from, name,
               lead(valid_from, 1, 'infinity') OVER (PARTITION BY site_id ORDER BY valid_from, revision) AS valid_until
        FROM site_description
        WHERE revision <= $9::bigint
    ) AS s USING (site_id)
    WHERE organization_id = $12::integer AND ($10::integer[] IS NULL OR site_id = ANY ($10::integer[]))
      AND c.valid_from < s.valid_until AND s.valid_from < c.valid_until
      AND greatest(c.valid_from, s.valid_from) < $3::timestamptz
      AND least(c.valid_until, s.valid_until) > $2::timestamptz
), clock AS MATERIALIZED (
    SELECT window_start, to_char(window_start, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS text
    FROM generate_series($2::timestamptz, $3::timestamptz, $1::integer * interval '1 minute') AS window_start
)"""  # noqa: S608 - put together from constants

_PER_HOUR = "(60 / $1::integer)"
_POWER, _ENERGY, _FLOW, _VOLUME = (
    f"coalesce(round({amount}, 2)::text, 'N/A')"
    for amount in (f"energy_wh * {_PER_HOUR}", "energy_wh", f"volume * {_PER_HOUR}", "volume")
)
_AMOUNTS = f"{_POWER}, {_ENERGY}, {_FLOW}, {_VOLUME}"
_PLAIN_LINE = f"meter_id, meter_type, meter_name, {{unit}}, clock.text, $1::integer, site_id, site_name, {_AMOUNTS}"
_CSV_LINE = f"meter_id, csv_type, csv_name, {{unit}}, clock.text, $1::integer, site_id, csv_site, {_AMOUNTS}"
_JSON_LINE = f"""json_to_unit || {{json_unit}} || clock.text || json_behind
       || {_POWER} || '","ENERGY(Wh)":"' || {_ENERGY}
       || '","FLOW":"' || {_FLOW} || '","VOLUME":"' || {_VOLUME} || '"}}}}'"""
_UNIT = {"unit": "unit", "json_unit": "json_unit"}
_COUNTED_UNIT = {
    "unit": "coalesce(counted_unit, unit)",
    "json_unit": 'coalesce(to_json(counted_unit) || \',"MEASUREMENT_TIME(UTC)":"\', json_unit)',
}

# The values of a closed window were made by the factors known then, so its unit is the one known then.
_CORRECTED = """corrected AS MATERIALIZED (
    SELECT meter_id FROM meter_configuration
    WHERE revision <= $9::bigint AND meter_id = ANY ($8::integer[])
    GROUP BY meter_id HAVING count(DISTINCT unit) > 1
)"""
_CLOSED = """
    SELECT window_start, meter_id, energy_wh, volume,
           CASE WHEN meter_id IN (SELECT corrected.meter_id FROM corrected) THEN (
               SELECT k.unit
               FROM window_closing w JOIN meter_configuration k ON k.revision <= w.catalog_revision
               WHERE w.resolution_minutes = m.resolution_minutes AND w.window_start = m.window_start
                 AND w.bucket = m.meter_id % (SELECT max(bucket) + 1 FROM window_frontier)
                 AND k.meter_id = m.meter_id AND k.valid_from <= m.window_start
               ORDER BY k.valid_from DESC, k.revision DESC LIMIT 1) END AS counted_unit
    FROM measurement m
    WHERE resolution_minutes = $1::integer AND window_start >= $2::timestamptz AND window_start < $3::timestamptz
      AND organization_id = $12::integer AND meter_id = ANY ($8::integer[])"""


def _line(export_format: ExportFormat) -> str:
    lines = {
        ExportFormat.CSV: _CSV_LINE,
        ExportFormat.JSON_LINES: _JSON_LINE,
        # From which Parquet is made: no spreadsheet ever sees it.
        ExportFormat.PARQUET: _PLAIN_LINE,
    }
    return lines[export_format]


def _rows(source: str, export_format: ExportFormat, unit: Mapping[str, str]) -> str:
    return f"""
SELECT {_line(export_format).format_map(unit)}
FROM ({source}) AS measured
JOIN described USING (meter_id)
JOIN clock USING (window_start)
WHERE window_start >= begins AND window_start < ends
ORDER BY window_start, meter_id"""  # noqa: S608 - put together from constants


def rows_from_readings(export_format: ExportFormat, *, is_selective: bool, is_as_of: bool) -> str:
    """Return the statement for readings that are kept. It also notes where registers stand at the end of the range."""
    known = _OF_METERS_ONE_BY_ONE if is_selective else _OF_METERS
    counted = counting(MANY_WINDOWS, known + (_KNOWN_THEN if is_as_of else ""), _PREVIOUS)
    source = "SELECT window_start, meter_id, energy_wh, volume FROM row"
    return f"WITH {_KNOWN}, {counted}{_STANDS}, {_DESCRIBED}{_rows(source, export_format, _UNIT)}"


def rows_from_windows(export_format: ExportFormat) -> str:
    """Return the statement for a range whose readings are no longer kept: the closed windows stand for them."""
    return f"WITH {_KNOWN}, {_CORRECTED}, {_DESCRIBED}{_rows(_CLOSED, export_format, _COUNTED_UNIT)}"


# COPY writes all of them as CSV, of which Parquet is made, too. A line of JSON holds no control characters, so nothing
# of it is ever put between these quotes: it comes out as it is.
DELIMITERS = {ExportFormat.CSV: ",", ExportFormat.PARQUET: ",", ExportFormat.JSON_LINES: "\x02"}
QUOTES = {ExportFormat.CSV: '"', ExportFormat.PARQUET: '"', ExportFormat.JSON_LINES: "\x01"}

# From when on readings, and the versions that newer ones displaced, are kept. NULL: none is.
KEPT_FROM = """
SELECT min((regexp_match(pg_get_expr(relpartbound, oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
FROM pg_class JOIN pg_inherits ON inhrelid = oid
WHERE inhparent IN ('reading'::regclass, 'reading_superseded'::regclass)
"""

# The first time in [$2, $3) at which anybody has anything. $1: resolution.
NEXT_TIME = """
SELECT least((SELECT min(measured_at) FROM reading WHERE measured_at >= $2 AND measured_at < $3),
             (SELECT min(window_start) FROM measurement
              WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3))
"""
