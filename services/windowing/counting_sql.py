"""From readings to rows: the common table expressions that closing and verification share, so that both say the same.

Parameters: $1 resolution in minutes, $2 and $3 the range of window starts, at or after and before, $4 the number by
which meters are divided, $5 the remainders that are meant (NULL: all of them, which spares looking at each reading's
meter; comparing with one costs less than with several), $6 the grace, $7 the largest plausible share of a register's
modulus per interval (NULL: as windows were closed before registers counted; pulses alone, and overlapping intervals
twice). `services.core.counting` says the same of one window at a time.
"""

from typing import NamedTuple

from services.windowing.as_of_sql import as_of, superseded_as_of

WINDOW_START = "date_bin($1::integer * interval '1 minute', measured_at, timestamptz 'epoch')"
TO_CUT_OFF = "($1::integer * interval '1 minute' + $6::interval)"
# What is the same for all readings is decided when the statement is planned.
IN_BUCKETS = """($5::integer[] IS NULL OR CASE WHEN cardinality($5::integer[]) = 1
           THEN meter_id % $4::integer = ($5::integer[])[1] ELSE meter_id % $4::integer = ANY ($5::integer[]) END)"""
IN_RANGE = f"measured_at >= $2::timestamptz AND measured_at < $3::timestamptz AND {IN_BUCKETS}"
IN_TIME = f"arrived_at <= {WINDOW_START} + {TO_CUT_OFF}"


class Windows(NamedTuple):
    """How SQL says which window a reading is in: one range may hold many windows, or be one."""

    start_of_reading: str
    """The start of the window that a reading is in."""
    key: str
    """What readings, or rows, are grouped and sorted by beside the meter, with its comma."""
    closed: str
    """The start of a row's window, as a column `window_start` among what is grouped."""
    in_time: str
    """The condition that a version arrived up to its window's cut-off."""
    configurations: str
    """Each meter's configurations with `valid_from` and `valid_until`."""


_CONFIGURATION_COLUMNS = """units_per_pulse, normalization_factor, calorific_value, register_modulus,
           greatest($1::integer / cadence_minutes, 1) AS intervals_expected"""

# A configuration holds until the next one of its meter begins; of two that begin at the same instant the one with the
# lower revision holds for no time at all. A meter without any has rows of pulses without quantities.
MANY_WINDOWS = Windows(
    WINDOW_START,
    "window_start, ",
    "window_start",
    IN_TIME,
    f"""
    SELECT meter_id, valid_from,
           lead(valid_from, 1, 'infinity') OVER (PARTITION BY meter_id ORDER BY valid_from, revision) AS valid_until,
           {_CONFIGURATION_COLUMNS}
    FROM meter_configuration
    WHERE revision <= (SELECT revision FROM known) AND {IN_BUCKETS}""",  # noqa: S608 - put together from constants
)
# The same where $3 is the end of the window that starts at $2: nothing is computed for each reading that is the same
# for all, and the configuration in force is the first that a walk through the key finds.
ONE_WINDOW = Windows(
    "$2::timestamptz",
    "",
    "$2::timestamptz AS window_start",
    f"arrived_at <= (SELECT $2::timestamptz + {TO_CUT_OFF})",
    f"""
    SELECT DISTINCT ON (meter_id) meter_id, valid_from, 'infinity'::timestamptz AS valid_until,
           {_CONFIGURATION_COLUMNS}
    FROM meter_configuration
    WHERE revision <= (SELECT revision FROM known) AND valid_from <= $2::timestamptz AND {IN_BUCKETS}
    ORDER BY meter_id DESC, valid_from DESC, revision DESC""",  # noqa: S608 - put together from constants
)

_WH = {
    "utility IN ('electricity', 'heat')": "units_per_pulse * 1000",
    "utility = 'gas'": "units_per_pulse * normalization_factor * calorific_value * 1000",
}
_VOLUME = {
    "utility IN ('water', 'air')": "units_per_pulse",
    "utility = 'gas'": "units_per_pulse * normalization_factor",
}


def _per_pulse(worth: dict[str, str], form: str = "{}") -> str:
    """Return the CASE of what a pulse is worth, with nothing computed for a utility that has none."""
    return f"CASE {' '.join(f'WHEN {utility} THEN {form.format(value)}' for utility, value in worth.items())} END"


# What a pulse is worth, in Wh and in the unit of the configuration, exactly; NULL where the utility has none.
WH_PER_PULSE = _per_pulse(_WH)
VOLUME_PER_PULSE = _per_pulse(_VOLUME)
_INSTANT = """'YYYY-MM-DD"T"HH24:MI:SS"Z"'"""


def _sums(windows: Windows, readings: str) -> str:
    return f"""
    SELECT {windows.start_of_reading} AS window_start, meter_id, bigint_sum(value) AS total,
           sum(interval_minutes) AS covered_minutes, count(*) AS readings, max(interval_minutes) AS longest_minutes,
           count(*) FILTER (WHERE is_register) AS registers
    FROM {readings}
    WHERE interval_minutes <= $1::integer AND (NOT is_register OR $7::numeric IS NOT NULL)"""  # noqa: S608 - constants


# intervals_present counts the minutes that readings cover in units of what is expected, rounded down, so it equals
# intervals_expected exactly when the readings cover the window, whatever their own intervals are.
#
# Meters that send pulses alone, of one interval, take the short way: aggregate, join, row. The steps for the others
# begin with joins to sets that are then empty, at which PostgreSQL stops before it reads anything.


def counting(windows: Windows, known: str, previous: str) -> str:
    """Return the expressions `superseded` to `row` and `event`, for a WITH that begins with `known (revision)`.

    `known` is the condition under which a version counts. `previous` is a SELECT of meter_id, register_value,
    register_at: where registers stood before $2, NULL in the latter two for meters that then sent pulses.
    """
    newest = f"(SELECT * FROM reading WHERE {IN_RANGE} AND {known}) AS newest"  # noqa: S608 - constants
    group = f"\n    GROUP BY {windows.key}meter_id"
    return f"""
superseded AS MATERIALIZED ({superseded_as_of(known, IN_RANGE)}
), as_of_cut_off AS NOT MATERIALIZED ({as_of(known, IN_RANGE, superseded="superseded")}
), counted AS MATERIALIZED (
    -- Mostly no reading counts in a superseded version, and then they need not go through a union one by one.
    {_sums(windows, newest)} AND NOT EXISTS (SELECT FROM superseded){group}
    UNION ALL
    {_sums(windows, "as_of_cut_off")} AND EXISTS (SELECT FROM superseded){group}
), odd AS MATERIALIZED (
    SELECT *, covered_minutes < readings * longest_minutes AS is_mixed
    FROM counted WHERE registers > 0 OR covered_minutes < readings * longest_minutes
), configuration AS NOT MATERIALIZED ({windows.configurations}
), previous AS MATERIALIZED ({previous}
), register_meter AS MATERIALIZED (
    SELECT meter_id FROM odd WHERE registers > 0
    UNION
    SELECT meter_id FROM previous WHERE register_value IS NOT NULL
), dated AS (
    -- The latest window up to this one that had pulses alone, and the latest that had registers alone.
    SELECT counted.*, register_value, register_at,
           max(window_start) FILTER (WHERE registers = 0) OVER so_far AS last_pulses,
           max(window_start) FILTER (WHERE registers = readings) OVER so_far AS last_registers
    FROM counted JOIN register_meter USING (meter_id) LEFT JOIN previous USING (meter_id)
    WINDOW so_far AS (PARTITION BY meter_id ORDER BY window_start)
), judged AS (
    SELECT *, CASE
               WHEN last_pulses IS NULL AND last_registers IS NULL THEN register_value IS NOT NULL
               ELSE coalesce(last_registers > coalesce(last_pulses, '-infinity'), false)
           END AS by_register
    FROM dated
), by_kind AS MATERIALIZED (
    SELECT *, lag(by_register, 1, register_value IS NOT NULL) OVER (PARTITION BY meter_id ORDER BY window_start)
           AS before_by_register
    FROM judged
), register_reading AS MATERIALIZED (
    SELECT by_kind.*, measured_at, interval_minutes, value,
           measured_at + interval_minutes * interval '1 minute' AS at
    FROM (SELECT window_start, meter_id, last_pulses, register_value, register_at, by_register FROM by_kind
          WHERE registers > 0) AS by_kind
    JOIN as_of_cut_off ON as_of_cut_off.meter_id = by_kind.meter_id AND {windows.start_of_reading} = window_start
    WHERE interval_minutes <= $1::integer AND is_register
), walked AS (
    -- Pulses in between break the chain: the next register is a new base.
    SELECT register_reading.*, register_modulus AS modulus,
           lag(value, 1, CASE WHEN last_pulses IS NULL THEN register_value END) OVER chain AS before_value,
           lag(at, 1, CASE WHEN last_pulses IS NULL THEN register_at END) OVER chain AS before_at
    FROM register_reading
    LEFT JOIN configuration ON configuration.meter_id = register_reading.meter_id
                           AND window_start >= valid_from AND window_start < valid_until
    WHERE by_register
    WINDOW chain AS (PARTITION BY register_reading.meter_id, last_pulses ORDER BY at, measured_at)
), measured AS (
    SELECT *, value - before_value + CASE WHEN value < before_value THEN modulus ELSE 0 END AS step,
           greatest(extract(epoch FROM at - before_at) / 60, interval_minutes) AS elapsed_minutes
    FROM walked
), stepped AS MATERIALIZED (
    SELECT *, value < before_value AND coalesce(
               before_value < modulus AND step * 2 <= modulus
               AND step * interval_minutes <= $7::numeric * modulus * elapsed_minutes, false) AS rolled_over
    FROM measured
), register_window AS MATERIALIZED (
    SELECT window_start, meter_id, count(before_value) AS steps,
           (sum(CASE WHEN value >= before_value OR rolled_over THEN step ELSE 0 END))::bigint AS pulses,
           least(sum(interval_minutes), $1::integer) AS covered_minutes,
           (array_agg(before_value ORDER BY at, measured_at) FILTER (WHERE before_value IS NOT NULL))[1]
               AS register_start,
           min(before_at) AS register_start_at,
           (array_agg(value ORDER BY at DESC, measured_at DESC))[1] AS register_end, max(at) AS register_end_at,
           bool_or(rolled_over) AS has_rolled_over,
           coalesce(bool_or(value < before_value AND NOT rolled_over), false) AS was_reset
    FROM stepped
    GROUP BY window_start, meter_id
), overlap AS MATERIALIZED (
    -- Intervals nest, so a reading overlaps others only where it lies inside a longer one, which then counts alone.
    SELECT window_start, meter_id, count(*) AS readings, sum(value) AS pulses, sum(interval_minutes) AS minutes
    FROM (
        SELECT window_start, as_of_cut_off.*, coalesce(measured_at < max(measured_at + interval_minutes * interval
                   '1 minute') OVER (PARTITION BY as_of_cut_off.meter_id, window_start
                                     ORDER BY measured_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), false)
                   AS is_inside
        FROM (SELECT window_start, meter_id FROM odd WHERE is_mixed AND $7::numeric IS NOT NULL) AS mixed
        JOIN as_of_cut_off ON as_of_cut_off.meter_id = mixed.meter_id AND {windows.start_of_reading} = window_start
        WHERE interval_minutes <= $1::integer AND NOT is_register
    ) AS compared
    WHERE is_inside
    GROUP BY window_start, meter_id
), pulse_window AS (
    SELECT window_start, meter_id, total, covered_minutes, 0 AS flags FROM odd
    WHERE is_mixed AND meter_id NOT IN (SELECT meter_id FROM register_meter)
    UNION ALL
    SELECT window_start, meter_id, total - coalesce(register_total, 0), covered_minutes - coalesce(register_minutes, 0),
           CASE WHEN registers = 0 THEN 0 ELSE 8 END
    FROM by_kind
    LEFT JOIN (
        SELECT window_start, meter_id, sum(value) AS register_total, sum(interval_minutes) AS register_minutes
        FROM register_reading WHERE NOT by_register
        GROUP BY window_start, meter_id
    ) AS beside USING (window_start, meter_id)
    WHERE NOT by_register
), content AS (
    SELECT window_start, meter_id, total AS pulses, covered_minutes, 0 AS flags, NULL::bigint AS register_start,
           NULL::timestamptz AS register_start_at, NULL::bigint AS register_end, NULL::timestamptz AS register_end_at
    FROM counted
    WHERE covered_minutes >= readings * longest_minutes AND meter_id NOT IN (SELECT meter_id FROM register_meter)
    UNION ALL
    SELECT window_start, meter_id, (total - coalesce(overlap.pulses, 0))::bigint AS pulses,
           covered_minutes - coalesce(overlap.minutes, 0) AS covered_minutes,
           flags | CASE WHEN overlap.pulses IS NULL THEN 0 ELSE 8 END, NULL, NULL, NULL, NULL
    FROM pulse_window LEFT JOIN overlap USING (window_start, meter_id)
    UNION ALL
    SELECT window_start, meter_id, pulses, register_window.covered_minutes,
           CASE WHEN register_start_at < window_start THEN 1 ELSE 0 END | CASE WHEN has_rolled_over THEN 2 ELSE 0 END
           | CASE WHEN was_reset THEN 4 ELSE 0 END | CASE WHEN registers < readings THEN 8 ELSE 0 END,
           register_start, register_start_at, register_end, register_end_at
    FROM register_window JOIN by_kind USING (window_start, meter_id)
    WHERE steps > 0
), row AS (
    SELECT window_start, content.meter_id, organization_id,
           (covered_minutes * coalesce(intervals_expected, $1::integer) / $1::integer)::smallint AS intervals_present,
           coalesce(intervals_expected, $1::integer)::smallint AS intervals_expected, pulses,
           trim_scale({_per_pulse(_WH, "pulses * ({})")}) AS energy_wh,
           trim_scale({_per_pulse(_VOLUME, "pulses * ({})")}) AS volume,
           flags::smallint AS flags, register_start, register_start_at, register_end, register_end_at
    FROM content
    JOIN (SELECT meter_id, organization_id, utility FROM meter WHERE {IN_BUCKETS}) AS meter USING (meter_id)
    LEFT JOIN configuration ON configuration.meter_id = content.meter_id
                           AND window_start >= valid_from AND window_start < valid_until
), event AS (
    SELECT window_start, organization_id, meter_id, kind, detail
    FROM (
        SELECT window_start, meter_id, 'registers_begin' AS kind,
               jsonb_build_object('register', value, 'at', to_char(at, {_INSTANT})) AS detail
        FROM stepped WHERE before_value IS NULL
        UNION ALL
        SELECT window_start, meter_id, 'pulses_begin', '{{}}'::jsonb
        FROM by_kind WHERE before_by_register AND NOT by_register
        UNION ALL
        SELECT window_start, meter_id, 'other_kind_ignored',
               CASE WHEN by_register
                   THEN jsonb_build_object('kind', 'pulses', 'readings', readings - registers)
                   ELSE jsonb_build_object('kind', 'registers', 'readings', registers) END
        FROM by_kind WHERE registers > 0 AND registers < readings
        UNION ALL
        SELECT window_start, meter_id, CASE WHEN rolled_over THEN 'register_rolled_over' ELSE 'register_reset' END,
               jsonb_build_object('modulus', max(modulus), 'steps', jsonb_agg(jsonb_build_object(
                   'from', before_value, 'to', value, 'at', to_char(at, {_INSTANT})) ORDER BY at, measured_at))
        FROM stepped WHERE value < before_value
        GROUP BY window_start, meter_id, rolled_over
        UNION ALL
        SELECT window_start, meter_id, 'register_beyond_modulus',
               jsonb_build_object('modulus', max(modulus), 'registers', jsonb_agg(jsonb_build_object(
                   'register', value, 'at', to_char(at, {_INSTANT})) ORDER BY at, measured_at))
        FROM stepped WHERE value >= modulus
        GROUP BY window_start, meter_id
        UNION ALL
        SELECT window_start, meter_id, 'overlap_ignored', jsonb_build_object('readings', readings, 'pulses', pulses)
        FROM overlap
        WHERE NOT EXISTS (SELECT FROM by_kind WHERE by_kind.meter_id = overlap.meter_id
                                                AND by_kind.window_start = overlap.window_start AND by_register)
    ) AS found
    JOIN meter USING (meter_id)
)"""  # noqa: S608 - put together from constants


_REST_OF_LINE = """
    '|' || flags || coalesce('|' || register_start || '|' || extract(epoch FROM register_start_at)::bigint
    || '|' || register_end || '|' || extract(epoch FROM register_end_at)::bigint, '')"""

# The hash is over one line per row, in the order of meter_id, joined by line feeds, in UTF-8:
#     meter_id|organization_id|intervals_present|intervals_expected|pulses|energy_wh|volume
# with nothing where there is no value, and where there are flags or registers in addition
#     |flags|register_start|its instant in seconds since 1970|register_end|its instant
# of which the last four stand only in rows of registers. trim_scale makes a number's text unique. One concat
# (which leaves out what is NULL) costs half of as many ||, and less still where concat_ws writes what separates.
LINE = f"""concat(
        concat_ws('|', meter_id, organization_id, intervals_present, intervals_expected, pulses), '|', energy_wh,
        '|', volume, CASE WHEN flags = 0 AND register_end IS NULL THEN '' ELSE {_REST_OF_LINE} END)"""
ROWS_SHA256 = f"sha256(convert_to(string_agg({LINE}, E'\\n' ORDER BY meter_id), 'UTF8'))"
ORDERED_LINES_SHA256 = "sha256(convert_to(string_agg(line, E'\\n'), 'UTF8'))"
"""As ROWS_SHA256, where the lines of each group come in the order of meter_id, which verification does not rely on."""
NO_ROWS_SHA256 = "sha256(''::bytea)"
