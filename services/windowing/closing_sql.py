"""The statement that closes windows. It stands alone, because what leaves the product is what it says.

Parameters: those of `counting_sql`, $8 the reading topics, and $9 the number of buckets.
"""

from services.windowing.counting_sql import (
    IN_BUCKETS,
    LINE,
    MANY_WINDOWS,
    NO_ROWS_SHA256,
    ONE_WINDOW,
    ORDERED_LINES_SHA256,
    TO_CUT_OFF,
    Windows,
    counting,
)

# Nothing tells the planner how many readings the last minutes hold, nor how few meters send registers, so it must not
# bet on either: plans are made for the very range, and joins and groups are hashed, in memory for 200,000 readings.
PLAN_FOR_THE_RANGE = """
    SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_nestloop', 'off', true),
           set_config('enable_mergejoin', 'off', true), set_config('enable_sort', 'off', true),
           set_config('work_mem', '64MB', true)
"""

# Rows are sorted by one number where they can be: with two keys each comparison of rows that are equal in the first one
# looks into the rows themselves, wherever they lie in memory.
_AS_ONE_KEY = "({})::bigint << 32 | meter_id"

_PREVIOUS = f"""
    SELECT meter_id, register_value, register_at FROM meter_register
    WHERE resolution_minutes = $1::integer AND {IN_BUCKETS}"""  # noqa: S608 - put together from constants


def _close(windows: Windows) -> str:
    return f"""
WITH known AS MATERIALIZED (
    SELECT revision,
           (SELECT jsonb_object_agg(topic || '/' || partition, next_offset)
            FROM ingest_progress WHERE topic = ANY ($8::text[])) AS offsets
    FROM catalog_revision
), {counting(windows, windows.in_time, _PREVIOUS)}, inserted AS (
    INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                             intervals_expected, pulses, energy_wh, volume, flags, register_start, register_start_at,
                             register_end, register_end_at)
    SELECT window_start, meter_id, organization_id, $1::integer, intervals_present, intervals_expected, pulses,
           energy_wh, volume, flags, register_start, register_start_at, register_end, register_end_at
    FROM row
    ORDER BY {windows.key}{_AS_ONE_KEY.format("organization_id")}
    RETURNING window_start, meter_id, {LINE} AS line
), hashed AS (
    SELECT {windows.closed}, meter_id % $9::integer AS bucket, count(*) AS row_count, {ORDERED_LINES_SHA256} AS sha256
    FROM (SELECT * FROM inserted ORDER BY meter_id) AS inserted
    GROUP BY {windows.key}meter_id % $9::integer
), told AS (
    INSERT INTO meter_event (resolution_minutes, window_start, organization_id, meter_id, kind, detail)
    SELECT $1::integer, window_start, organization_id, meter_id, kind, detail FROM event
    RETURNING window_start, meter_id
), closed AS (
    INSERT INTO window_closing (resolution_minutes, window_start, bucket, cut_off, catalog_revision, register_share,
                                row_count, sha256, offsets)
    SELECT $1::integer, window_start, bucket, window_start + {TO_CUT_OFF}, revision, $7::numeric,
           coalesce(row_count, 0), coalesce(sha256, {NO_ROWS_SHA256}), offsets
    FROM hashed
    FULL JOIN (SELECT DISTINCT window_start, meter_id % $9::integer AS bucket FROM told) AS telling
        USING (window_start, bucket)
    CROSS JOIN known
    RETURNING row_count
), stands AS (
    INSERT INTO meter_register (resolution_minutes, meter_id, register_value, register_at)
    SELECT DISTINCT ON (meter_id) $1::integer, meter_id, register_end, register_end_at
    FROM by_kind LEFT JOIN register_window USING (window_start, meter_id)
    WHERE by_register OR before_by_register
    ORDER BY meter_id, window_start DESC
    ON CONFLICT (resolution_minutes, meter_id) DO UPDATE
    SET register_value = excluded.register_value, register_at = excluded.register_at
)
SELECT count(*) AS windows, coalesce(sum(row_count), 0)::bigint AS rows FROM closed
"""  # noqa: S608 - put together from the constants above


CLOSE = _close(MANY_WINDOWS)
CLOSE_ONE = _close(ONE_WINDOW)
"""For one window: as CLOSE, where $3 is the end of the window that starts at $2."""
