"""The statements that give the rows of one chunk, in the very bytes of the file.

They count by the expressions that closing itself is made of, so an export says what closing would say, were the windows
closed with the readings that are known now. Names, rounding and the literal N/A are those of every other export
(`services.core.records`, `csv_records`).

Parameters: those of `counting` ($1 resolution in minutes, $2 and $3 the range of window starts, $4 and $5 buckets: 1
and NULL, $6 unused, $7 the plausible share of a register's modulus), $8 the meters, $9 the catalog revision, $10 the
sites (NULL: all), $11 the instant of knowledge (NULL: now), $12 the organization, $13 the export, and in statements
that read selectively $14 all minutes of the range.
"""

from typing import NamedTuple

from services.core.csv_records import CSV_HEADER
from services.core.manual_export import ExportFormat
from services.windowing.counting_sql import MANY_WINDOWS, VOLUME_PER_PULSE, WH_PER_PULSE, counting

CSV_HEAD = CSV_HEADER.encode() + b"\n"
"""What a CSV file begins with. Lines end with a line feed."""

# Nothing tells the planner how many readings there are, so it must not bet on few: joins are hashed. Reading meter by
# meter is a walk through the index, no join.
_PLAN = """
    SELECT set_config('enable_nestloop', 'off', true), set_config('enable_mergejoin', 'off', true),
           set_config('work_mem', '64MB', true), set_config('max_parallel_workers_per_gather', '0', true),
           set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_hashagg', '{hashing}', true),
           set_config('enable_bitmapscan', '{bitmap}', true)
"""
_SORTED_READINGS = 4
"""Up to so many readings in a window they are grouped by sorting, above it by hashing."""


def plan_for_the_chunk(readings_in_window: int, *, is_selective: bool) -> str:
    """Return the statement that makes the transaction's next statements be planned well.

    The primary key gives readings in the order of time and meter. Where windows have few of them that is the order of
    the lines, or nearly: to sort them finds little to do, and the lines need no sorting then. A hash would give them in
    no order at all; it is faster where it makes many readings few.
    """
    if is_selective or readings_in_window > _SORTED_READINGS:
        return _PLAN.format(hashing="on", bitmap="on")
    return _PLAN.format(hashing="off", bitmap="off")


# Every parameter must stand somewhere, lest its type is unknown.
_KNOWN = """known AS MATERIALIZED (
    SELECT $9::bigint AS revision, $4::integer, $5::integer[], $6::interval, $7::numeric, $10::integer[],
           $11::timestamptz, $13::bigint
)"""

# A meter is judged by where the last chunk left its registers.
_PREVIOUS = """
    SELECT meter_id, register_value, register_at FROM manual_export_register
    WHERE organization_id = $12::integer AND export_id = $13::bigint"""

# The sum keeps a search through the key for each of thousands of meters from looking cheap. Behind CASE the planner
# does not weigh each of them, time and again.
_OF_METERS = "CASE WHEN (meter_id + 0) = ANY ($8::integer[]) THEN true ELSE false END"
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


def _cell(text: str) -> str:
    """Return a text as a cell, in quotes where RFC 4180 wants them, as `csv_records` has it."""
    return f"""CASE WHEN {text} ~ '[",\\r\\n]' THEN '"' || replace({text}, '"', '""') || '"' ELSE {text} END"""


class _Layout(NamedTuple):
    """What stands in a line besides the time and the amounts."""

    text: str
    """An expression of how a name or a type stands in the line, before it is quoted; the text is in the place of {}."""
    before: str
    """An expression over such texts, of what stands before the unit; computed once for many lines."""
    unit: str
    """The same of the unit, which stands in the place of {}, up to the time."""
    behind: str
    """The same of what stands between the time and power, energy, flow and volume: all of it is the site's."""
    between: tuple[str, str, str]
    """What separates these four."""
    end: str


def _csv_layout(text: str) -> _Layout:
    return _Layout(
        text,
        f"meter_id || ',' || {_cell('meter_type')} || ',' || {_cell('meter_name')} || ','",
        "{} || ','",
        f"',' || $1::integer || ',' || site_id || ',' || {_cell(text.format('name'))} || ','",
        (",", ",", ","),
        "\\n",
    )


_LAYOUTS = {
    ExportFormat.CSV: _csv_layout(_defused("{0}")),
    # From which Parquet is made: no spreadsheet ever sees it.
    ExportFormat.PARQUET: _csv_layout("{0}"),
    ExportFormat.JSON_LINES: _Layout(
        "{0}",
        """'{"METER_ID":' || meter_id || ',"METER_TYPE":' || to_json(meter_type) || ',"METER_NAME":'
           || to_json(meter_name) || ',"METER_UNIT":'""",
        """to_json({}) || ',"MEASUREMENT_TIME(UTC)":"'""",
        """'","RESOLUTION(min)":' || $1::integer || ',"SITE_ID":' || site_id || ',"SITE_NAME":' || to_json(name)
           || ',"POWER(W)":"'""",
        ('","ENERGY(Wh)":"', '","FLOW":"', '","VOLUME":"'),
        '"}\\n',
    ),
}
_PER_HOUR = "(60 / $1::integer)"
_SMALL = 10**8
"""The product of two such numbers and of the minutes of an hour is well within 64 bits."""


def _described(layout: _Layout, *, of_pulses: bool) -> str:
    """Return the spans in which all that a meter's lines say besides time and pulses stays the same, and that.

    Of windows the unit stands alone: it is that of their values.
    """
    unit = layout.unit.format("unit")
    before = f"{layout.before} || {unit} AS before" if of_pulses else f"{layout.before} AS before, {unit} AS unit_text"
    return f"""described AS MATERIALIZED (
    SELECT meter_id, greatest(c.valid_from, s.valid_from) AS begins, least(c.valid_until, s.valid_until) AS ends,
           {before}, behind,
           wh_per_pulse, wh_per_pulse * {_PER_HOUR} AS watts_per_pulse,
           volume_per_pulse, volume_per_pulse * {_PER_HOUR} AS flow_per_pulse,
           CASE WHEN wh_per_pulse = trunc(wh_per_pulse) AND wh_per_pulse <= {_SMALL} THEN wh_per_pulse::bigint END
               AS whole_wh_per_pulse
    FROM (
        SELECT meter_id, valid_from, {layout.text.format("meter_type")} AS meter_type,
               {layout.text.format("name")} AS meter_name, unit, site_id, {WH_PER_PULSE} AS wh_per_pulse,
               {VOLUME_PER_PULSE} AS volume_per_pulse,
               lead(valid_from, 1, 'infinity') OVER (PARTITION BY meter_id ORDER BY valid_from, version.revision)
                   AS valid_until
        FROM meter_configuration AS version JOIN meter USING (meter_id)
        WHERE version.revision <= $9::bigint AND meter_id = ANY ($8::integer[]) AND organization_id = $12::integer
    ) AS c
    JOIN (
        SELECT site_id, valid_from, {layout.behind} AS behind,
               lead(valid_from, 1, 'infinity') OVER (PARTITION BY site_id ORDER BY valid_from, revision) AS valid_until
        FROM site_description
        WHERE revision <= $9::bigint
    ) AS s USING (site_id)
    WHERE ($10::integer[] IS NULL OR site_id = ANY ($10::integer[]))
      AND c.valid_from < s.valid_until AND s.valid_from < c.valid_until
      AND greatest(c.valid_from, s.valid_from) < $3::timestamptz
      AND least(c.valid_until, s.valid_until) > $2::timestamptz
), clock AS MATERIALIZED (
    -- The first half of a number that sorts lines by time and meter: one number is sorted faster than two columns.
    SELECT window_start, to_char(window_start, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS text, number << 32 AS place
    FROM generate_series($2::timestamptz, $3::timestamptz, $1::integer * interval '1 minute')
         WITH ORDINALITY AS series (window_start, number)
)"""  # noqa: S608 - put together from constants


class _Amounts(NamedTuple):
    """Expressions: exact, NULL where the utility has none."""

    power: str
    energy: str
    flow: str
    volume: str


_OF_PULSES = _Amounts(
    "pulses * watts_per_pulse", "pulses * wh_per_pulse", "pulses * flow_per_pulse", "pulses * volume_per_pulse"
)
_OF_WINDOWS = _Amounts(f"energy_wh * {_PER_HOUR}", "energy_wh", f"volume * {_PER_HOUR}", "volume")
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


def _pair(before: str, rate: str, between: str, amount: str, behind: str) -> str:
    """Return both with two decimals, or twice N/A, and what stands around them, as one expression.

    Texts are written into the expression where they are the same for all lines: each joint takes time.
    """
    values = f"round({rate}, 2) || E'{between}' || round({amount}, 2)"
    values = (f"E'{before}' || " if before else "") + values + (f" || E'{behind}'" if behind else "")
    return f"coalesce({values}, E'{before}N/A{between}N/A{behind}')"


def _whole_energy(between: str, otherwise: str) -> str:
    """Return power and energy as `_pair` does, faster where a pulse is a whole number of Wh, as it is for nearly all.

    Whole numbers are multiplied and written several times as fast as decimals.
    """
    watts, energy = f"pulses * whole_wh_per_pulse * {_PER_HOUR}", "pulses * whole_wh_per_pulse"
    is_whole = f"whole_wh_per_pulse IS NOT NULL AND pulses BETWEEN 0 AND {_SMALL}"
    return f"CASE WHEN {is_whole} THEN {watts} || E'.00{between}' || {energy} || '.00' ELSE {otherwise} END"


def _rows(source: str, export_format: ExportFormat, *, of_pulses: bool) -> str:
    layout = _LAYOUTS[export_format]
    amounts = _OF_PULSES if of_pulses else _OF_WINDOWS
    between_energy, between_pairs, between_volume = layout.between
    energy = _pair("", amounts.power, between_energy, amounts.energy, "")
    if of_pulses:
        energy = _whole_energy(between_energy, energy)
    volume = _pair(between_pairs, amounts.flow, between_volume, amounts.volume, layout.end)
    unit = "" if of_pulses else f"coalesce({layout.unit.format('counted_unit')}, unit_text) || "
    line = f"before || {unit}clock.text || behind || {energy} || {volume}"
    # OFFSET 0: lines are made before they are sorted, not after. What they are made of is twice as much to be moved.
    return f"""{_described(layout, of_pulses=of_pulses)}
SELECT count(*) AS row_count, convert_to(string_agg(line, '' ORDER BY line_place), 'UTF8') AS lines
FROM (
    SELECT {line} AS line, place + meter_id AS line_place
    FROM ({source}) AS measured
    JOIN described USING (meter_id)
    JOIN clock USING (window_start)
    WHERE window_start >= begins AND window_start < ends
    OFFSET 0
) AS made"""  # noqa: S608 - put together from constants


def rows_from_readings(export_format: ExportFormat, *, is_selective: bool, is_as_of: bool) -> str:
    """Return the statement for readings that are kept. It also notes where registers stand at the end of the range."""
    known = _OF_METERS_ONE_BY_ONE if is_selective else _OF_METERS
    counted = counting(MANY_WINDOWS, known + (_KNOWN_THEN if is_as_of else ""), _PREVIOUS)
    source = "SELECT window_start, meter_id, pulses FROM content"
    return f"WITH {_KNOWN}, {counted}{_STANDS}, {_rows(source, export_format, of_pulses=True)}"


def rows_from_windows(export_format: ExportFormat) -> str:
    """Return the statement for a range whose readings are no longer kept: the closed windows stand for them."""
    return f"WITH {_KNOWN}, {_CORRECTED}, {_rows(_CLOSED, export_format, of_pulses=False)}"


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
