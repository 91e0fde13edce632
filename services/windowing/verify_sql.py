"""The statements of verification: what closed windows must hold by the readings, compared with what they hold.

They count by the very expressions that closing uses. What was known when a window was closed is what arrived up to its
cut-off and lay before the offsets that are recorded with it.
"""

from services.windowing.counting_sql import (
    IN_BUCKETS,
    IN_TIME,
    MANY_WINDOWS,
    NO_ROWS_SHA256,
    ROWS_SHA256,
    WINDOW_START,
    counting,
)

# Parameters: $1 resolution, $2 and $3 the range of window starts. Windows that were closed in one go, with everything
# recorded alike, are verified in one go.
CLOSED_TOGETHER = """
SELECT array_agg(window_start ORDER BY window_start) AS starts, cut_off - window_start AS waited, buckets,
       catalog_revision, register_share, offsets
FROM (
    SELECT window_start, cut_off, catalog_revision, register_share, offsets,
           array_agg(bucket ORDER BY bucket) AS buckets
    FROM window_closing
    WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
    GROUP BY window_start, cut_off, catalog_revision, register_share, offsets
) AS closing
GROUP BY cut_off - window_start, buckets, catalog_revision, register_share, offsets
ORDER BY starts, buckets
"""

_IN_OFFSETS = "was_stored($8::jsonb, source_topic, source_partition, source_offset)"
# What a window without a proof was forced without. Almost always no window was.
_NOT_FORCED_OUT = f"""NOT EXISTS (
    SELECT FROM window_forced AS forced
    WHERE forced.resolution_minutes = $1::integer AND forced.bucket = meter_id % $4::integer
      AND {WINDOW_START} >= forced.from_start AND {WINDOW_START} < forced.until_start
      AND NOT was_stored(forced.stored_before, source_topic, source_partition, source_offset))"""

# Where registers stood before $2: the latest row of registers, unless the meter began anew or went over to pulses
# later. Where retention has dropped what came before, the first row's own word for its beginning has to do; an event
# from before then is no better, because rows followed it that are gone.
_PREVIOUS = f"""
    SELECT meter_id, register_value, register_at
    FROM (SELECT meter_id FROM meter_register WHERE resolution_minutes = $1::integer AND {IN_BUCKETS}) AS sender
    CROSS JOIN LATERAL (
        SELECT register_value, register_at
        FROM (
            (SELECT window_start, 1 AS rank, register_end AS register_value, register_end_at AS register_at
             FROM measurement
             WHERE resolution_minutes = $1::integer AND meter_id = sender.meter_id AND register_end IS NOT NULL
               AND window_start < $2::timestamptz
             ORDER BY window_start DESC LIMIT 1)
            UNION ALL
            (SELECT window_start, 0, CASE WHEN kind = 'registers_begin' THEN (detail ->> 'register')::bigint END,
                    CASE WHEN kind = 'registers_begin' THEN (detail ->> 'at')::timestamptz END
             FROM meter_event
             WHERE resolution_minutes = $1::integer AND meter_id = sender.meter_id
               AND kind IN ('registers_begin', 'pulses_begin') AND window_start < $2::timestamptz
             ORDER BY window_start DESC LIMIT 1)
            UNION ALL
            (SELECT coalesce((SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1::integer),
                             '-infinity'), 0, register_start, register_start_at
             FROM measurement
             WHERE resolution_minutes = $1::integer AND meter_id = sender.meter_id AND register_end IS NOT NULL
               AND window_start >= $2::timestamptz AND window_start < $3::timestamptz
               AND register_start_at <= $2::timestamptz
             ORDER BY window_start LIMIT 1)
        ) AS known_places
        ORDER BY window_start DESC, rank DESC LIMIT 1
    ) AS latest"""  # noqa: S608 - put together from constants

_ROW_COLUMNS = (
    "organization_id, intervals_present, intervals_expected, pulses, energy_wh, volume, flags, register_start, "
    "register_start_at, register_end, register_end_at"
)


def _as_json(alias: str) -> str:
    pairs = ", ".join(f"'{name}', {alias}.{name}" for name in _ROW_COLUMNS.split(", "))
    return f"jsonb_strip_nulls(jsonb_build_object({pairs}))"


def _tuple(alias: str) -> str:
    return ", ".join(f"{alias}.{name}" for name in _ROW_COLUMNS.split(", "))


# Parameters: those of counting, $8 offsets as {"source_topic/source_partition": next offset}, $9 the catalog revision,
# $10 the windows that were closed ($5 buckets), $11 how many differences to tell at most.
#
# Whether rows differ is decided by comparing the rows; hash and number are compared beside it, because they were
# recorded to be compared.
VERIFY = f"""
WITH known AS MATERIALIZED (SELECT $9::bigint AS revision),
{counting(MANY_WINDOWS, f"{IN_TIME} AND {_IN_OFFSETS}", _PREVIOUS)}, wanted AS MATERIALIZED (
    SELECT * FROM row WHERE window_start = ANY ($10::timestamptz[])
), wanted_event AS MATERIALIZED (
    SELECT * FROM event WHERE window_start = ANY ($10::timestamptz[])
), found AS (
    SELECT window_start, meter_id, {_ROW_COLUMNS} FROM measurement
    WHERE resolution_minutes = $1::integer AND window_start = ANY ($10::timestamptz[])
      AND window_start >= $2::timestamptz AND window_start < $3::timestamptz AND {IN_BUCKETS}
), found_event AS (
    SELECT window_start, organization_id, meter_id, kind, detail FROM meter_event
    WHERE resolution_minutes = $1::integer AND window_start = ANY ($10::timestamptz[])
      AND window_start >= $2::timestamptz AND window_start < $3::timestamptz AND {IN_BUCKETS}
), recorded AS (
    SELECT window_start, bucket, row_count, sha256 FROM window_closing
    WHERE resolution_minutes = $1::integer AND window_start = ANY ($10::timestamptz[])
      AND ($5::integer[] IS NULL OR bucket = ANY ($5::integer[]))
), hashed AS (
    SELECT window_start, meter_id % $4::integer AS bucket, count(*) AS row_count, {ROWS_SHA256} AS sha256
    FROM wanted
    GROUP BY window_start, meter_id % $4::integer
), differing AS (
    SELECT coalesce(wanted.window_start, found.window_start) AS window_start,
           coalesce(wanted.meter_id, found.meter_id) AS meter_id,
           CASE WHEN wanted.meter_id IS NULL THEN 'row_added' WHEN found.meter_id IS NULL THEN 'row_missing'
                ELSE 'row_differs' END AS what,
           CASE WHEN wanted.meter_id IS NOT NULL THEN {_as_json("wanted")} END AS expected,
           CASE WHEN found.meter_id IS NOT NULL THEN {_as_json("found")} END AS found
    FROM wanted FULL JOIN found USING (window_start, meter_id)
    WHERE ({_tuple("wanted")}) IS DISTINCT FROM ({_tuple("found")})
    UNION ALL
    SELECT coalesce(wanted_event.window_start, found_event.window_start),
           coalesce(wanted_event.meter_id, found_event.meter_id),
           CASE WHEN wanted_event.meter_id IS NULL THEN 'event_added' WHEN found_event.meter_id IS NULL
                THEN 'event_missing' ELSE 'event_differs' END,
           jsonb_build_object(coalesce(wanted_event.kind, found_event.kind), wanted_event.detail),
           jsonb_build_object(coalesce(wanted_event.kind, found_event.kind), found_event.detail)
    FROM wanted_event FULL JOIN found_event USING (window_start, meter_id, kind)
    WHERE wanted_event.detail IS DISTINCT FROM found_event.detail
    UNION ALL
    SELECT window_start, NULL, 'proof_differs',
           jsonb_build_object('bucket', bucket, 'rows', coalesce(hashed.row_count, 0),
                              'sha256', encode(coalesce(hashed.sha256, {NO_ROWS_SHA256}), 'hex')),
           jsonb_build_object('bucket', bucket, 'rows', recorded.row_count, 'sha256', encode(recorded.sha256, 'hex'))
    FROM recorded LEFT JOIN hashed USING (window_start, bucket)
    WHERE recorded.row_count <> coalesce(hashed.row_count, 0)
       OR recorded.sha256 <> coalesce(hashed.sha256, {NO_ROWS_SHA256})
), numbered AS (
    SELECT *, count(*) OVER () AS differences, row_number() OVER (ORDER BY window_start, meter_id NULLS LAST, what)
              AS number
    FROM differing
)
SELECT (SELECT count(*) FROM wanted) AS rows, window_start, meter_id, what, expected, found, differences
FROM (SELECT) AS always LEFT JOIN numbered ON number <= $11::integer
ORDER BY number
"""  # noqa: S608 - put together from constants

# Where a chunk may begin: the first time at or after $2 and before $3 at which there is anything. $1: resolution.
NEXT_TIME = """
SELECT least((SELECT min(measured_at) FROM reading WHERE measured_at >= $2 AND measured_at < $3),
             (SELECT min(window_start) FROM window_closing
              WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3),
             (SELECT min(window_start) FROM measurement
              WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3))
"""

# What bounds verification: where closing began and has come to, how long windows waited (the newest tells), how many
# buckets there are, and from when on readings are still kept.
BOUNDS = """
SELECT opened_at,
       (SELECT min(closed_until) FROM window_frontier WHERE resolution_minutes = $1) AS closed_until,
       (SELECT cut_off - window_start FROM window_closing WHERE resolution_minutes = $1
        ORDER BY window_start DESC LIMIT 1) AS waited,
       (SELECT count(*) FROM window_frontier WHERE resolution_minutes = $1) AS buckets,
       (SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1) AS dropped_until,
       (SELECT min((regexp_match(pg_get_expr(relpartbound, oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
        FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = 'reading'::regclass) AS readings_from
FROM window_closed WHERE resolution_minutes = $1
"""

DROPPED_UNTIL = "SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1"

READING_AFTER = """
SELECT measured_at FROM reading WHERE measured_at >= $1 AND measured_at < $2 ORDER BY measured_at OFFSET $3 LIMIT 1
"""

COUNT_CLOSED = """
SELECT count(DISTINCT window_start) FROM window_closing
WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
"""

# Windows without a proof that should have one: something was measured, or is to be measured. Parameters: those of
# counting; what is recorded with a window is not there, so it is counted by everything that arrived in time (and was
# there when it was forced) and by the catalog as it is now.
WITHOUT_PROOF = f"""
WITH known AS MATERIALIZED (SELECT revision FROM catalog_revision),
{counting(MANY_WINDOWS, f"{IN_TIME} AND {_NOT_FORCED_OUT}", _PREVIOUS)}
SELECT window_start, bucket, count(wanted) AS expected, count(found) AS found,
       (array_agg(DISTINCT meter_id))[1:5] AS first_meters
FROM (
    -- An event alone has a proof, too, and counts for nothing here.
    SELECT window_start, meter_id, meter_id % $4::integer AS bucket, true AS wanted, NULL::boolean AS found FROM row
    UNION ALL
    SELECT window_start, meter_id, meter_id % $4::integer, NULL, NULL FROM event
    UNION ALL
    SELECT window_start, meter_id, meter_id % $4::integer, NULL, true FROM measurement
    WHERE resolution_minutes = $1::integer AND window_start >= $2::timestamptz AND window_start < $3::timestamptz
) AS present
WHERE NOT EXISTS (
    SELECT FROM window_closing AS closing
    WHERE closing.resolution_minutes = $1::integer AND closing.window_start = present.window_start
      AND closing.bucket = present.bucket
)
GROUP BY window_start, bucket
ORDER BY window_start, bucket
"""  # noqa: S608 - put together from constants
