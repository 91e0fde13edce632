"""The statements of verification: what closed windows must hold by the readings, compared with what they hold.

They count by the very expressions that closing uses. What a window must hold is everything that arrived up to its
cut-off; where it was forced, only what lay before the offsets that were recorded when it was.
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

# Parameters: $1 resolution, $2 and $3 the range of window starts. Windows that follow each other and were closed in the
# same way are verified in one go: a segment ends where any bucket's way changes, so in each a bucket has one.
CLOSED_ALIKE = """
WITH proof AS (
    SELECT window_start, bucket, cut_off - window_start AS waited, catalog_revision, register_share
    FROM window_closing
    WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
), compared AS (
    SELECT *, lag((waited, catalog_revision, register_share)) OVER (PARTITION BY bucket ORDER BY window_start)
              IS DISTINCT FROM (waited, catalog_revision, register_share) AS is_other,
           lag(bucket) OVER (PARTITION BY bucket ORDER BY window_start) IS NULL AS is_first
    FROM proof
), numbered AS (
    SELECT *, count(*) FILTER (WHERE is_other AND NOT is_first) OVER (ORDER BY window_start) AS segment
    FROM compared
)
SELECT segment, min(min(window_start)) OVER (PARTITION BY segment) AS begins, waited, catalog_revision, register_share,
       array_agg(DISTINCT bucket) AS buckets
FROM numbered
GROUP BY segment, waited, catalog_revision, register_share
ORDER BY segment, waited, catalog_revision, register_share
"""

_NOT_FORCED_OUT = f"""NOT EXISTS (
    SELECT FROM window_forced AS forced
    WHERE forced.resolution_minutes = $1::integer AND forced.bucket = meter_id % $4::integer
      AND forced.from_start < $3::timestamptz AND forced.until_start > $2::timestamptz
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


# Parameters: those of counting, $8 the catalog revision, $9 how many differences to tell at most.
#
# Whether rows differ is decided by comparing the rows; hash and number are compared beside it, because they were
# recorded to be compared. Of windows without a proof that hold something, or should, only that is told.
def _verify(known: str) -> str:
    return f"""
WITH known AS MATERIALIZED (SELECT $8::bigint AS revision),
{counting(MANY_WINDOWS, known, _PREVIOUS)}, wanted AS MATERIALIZED (
    SELECT * FROM row
), wanted_event AS MATERIALIZED (
    SELECT * FROM event
), found AS MATERIALIZED (
    SELECT window_start, meter_id, {_ROW_COLUMNS} FROM measurement
    WHERE resolution_minutes = $1::integer AND window_start >= $2::timestamptz AND window_start < $3::timestamptz
      AND {IN_BUCKETS}
), found_event AS (
    SELECT window_start, organization_id, meter_id, kind, detail FROM meter_event
    WHERE resolution_minutes = $1::integer AND window_start >= $2::timestamptz AND window_start < $3::timestamptz
      AND {IN_BUCKETS}
), recorded AS MATERIALIZED (
    SELECT window_start, bucket, row_count, sha256 FROM window_closing
    WHERE resolution_minutes = $1::integer AND window_start >= $2::timestamptz AND window_start < $3::timestamptz
      AND ($5::integer[] IS NULL OR bucket = ANY ($5::integer[]))
), hashed AS MATERIALIZED (
    SELECT window_start, meter_id % $4::integer AS bucket, count(*) AS row_count, {ROWS_SHA256} AS sha256
    FROM wanted
    GROUP BY window_start, meter_id % $4::integer
), unproven AS MATERIALIZED (
    SELECT window_start, bucket, sum(wanted)::bigint AS wanted, sum(found)::bigint AS found
    FROM (
        SELECT window_start, bucket, row_count AS wanted, 0 AS found FROM hashed
        UNION ALL
        SELECT window_start, meter_id % $4::integer, 0, count(*) FROM found GROUP BY 1, 2
        UNION ALL
        -- An event alone has a proof, too, and counts for nothing here.
        SELECT window_start, meter_id % $4::integer, 0, 0 FROM wanted_event
    ) AS present
    WHERE NOT EXISTS (SELECT FROM recorded
                      WHERE recorded.window_start = present.window_start AND recorded.bucket = present.bucket)
    GROUP BY window_start, bucket
), unproven_meter AS (
    SELECT unproven.window_start, bucket, (array_agg(DISTINCT meter_id))[1:5] AS meters
    FROM (
        SELECT window_start, meter_id FROM wanted
        UNION ALL
        SELECT window_start, meter_id FROM found
        UNION ALL
        SELECT window_start, meter_id FROM wanted_event
    ) AS present
    JOIN unproven ON unproven.window_start = present.window_start AND bucket = meter_id % $4::integer
    GROUP BY unproven.window_start, bucket
), differing_row AS (
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
), differing AS (
    SELECT * FROM differing_row
    WHERE NOT EXISTS (SELECT FROM unproven WHERE unproven.window_start = differing_row.window_start
                                             AND bucket = differing_row.meter_id % $4::integer)
    UNION ALL
    SELECT window_start, NULL, 'proof_differs',
           jsonb_build_object('bucket', bucket, 'rows', coalesce(hashed.row_count, 0),
                              'sha256', encode(coalesce(hashed.sha256, {NO_ROWS_SHA256}), 'hex')),
           jsonb_build_object('bucket', bucket, 'rows', recorded.row_count, 'sha256', encode(recorded.sha256, 'hex'))
    FROM recorded LEFT JOIN hashed USING (window_start, bucket)
    WHERE recorded.row_count <> coalesce(hashed.row_count, 0)
       OR recorded.sha256 <> coalesce(hashed.sha256, {NO_ROWS_SHA256})
    UNION ALL
    SELECT window_start, NULL, 'proof_missing',
           jsonb_build_object('bucket', bucket, 'rows', wanted, 'first_meters', meters),
           jsonb_build_object('bucket', bucket, 'rows', found, 'first_meters', meters)
    FROM unproven JOIN unproven_meter USING (window_start, bucket)
), numbered AS (
    SELECT *, count(*) OVER () AS differences, row_number() OVER (ORDER BY window_start, meter_id NULLS LAST, what)
              AS number
    FROM differing
)
SELECT (SELECT count(*) FROM wanted) AS rows,
       (SELECT count(DISTINCT window_start) FROM unproven
        WHERE window_start NOT IN (SELECT window_start FROM recorded)) AS unproven_windows,
       window_start, meter_id, what, expected, found, differences
FROM (SELECT) AS always LEFT JOIN numbered ON number <= $9::integer
ORDER BY number
"""  # noqa: S608 - put together from constants


VERIFY = _verify(IN_TIME)
VERIFY_FORCED = _verify(f"{IN_TIME} AND {_NOT_FORCED_OUT}")
"""For a range in which some windows were forced."""

# What is held by windows before the first one that closing began with: nothing has a place there. $1: resolution,
# $2 and $3: the range of window starts, $4: how many to tell at most.
BEFORE_OPENING = f"""
SELECT *, count(*) OVER () AS differences
FROM (
    SELECT window_start, meter_id, 'row_added' AS what, {_as_json("found")} AS found FROM measurement AS found
    WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
    UNION ALL
    SELECT window_start, meter_id, 'event_added', jsonb_build_object(kind, detail) FROM meter_event
    WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
) AS held
ORDER BY window_start, meter_id, what LIMIT $4
"""  # noqa: S608 - put together from constants

# Where readings are no longer kept, rows can still be compared with what was recorded of them when they were written.
# $1: resolution, $2 and $3: the range of window starts, $4: the number of buckets, $5: how many to tell at most.
ROWS_BY_PROOF = f"""
WITH hashed AS (
    SELECT window_start, meter_id % $4::integer AS bucket, count(*) AS row_count, {ROWS_SHA256} AS sha256
    FROM measurement
    WHERE resolution_minutes = $1::integer AND window_start >= $2 AND window_start < $3
    GROUP BY window_start, meter_id % $4::integer
), recorded AS (
    SELECT window_start, bucket, row_count, sha256 FROM window_closing
    WHERE resolution_minutes = $1::integer AND window_start >= $2 AND window_start < $3
), differing AS (
    SELECT window_start, CASE WHEN recorded.sha256 IS NULL THEN 'proof_missing' ELSE 'rows_differ' END AS what,
           CASE WHEN recorded.sha256 IS NOT NULL THEN
               jsonb_build_object('bucket', bucket, 'rows', recorded.row_count,
                                  'sha256', encode(recorded.sha256, 'hex')) END AS expected,
           jsonb_build_object('bucket', bucket, 'rows', coalesce(hashed.row_count, 0),
                              'sha256', encode(coalesce(hashed.sha256, {NO_ROWS_SHA256}), 'hex')) AS found
    FROM recorded FULL JOIN hashed USING (window_start, bucket)
    WHERE (recorded.row_count, recorded.sha256)
          IS DISTINCT FROM (coalesce(hashed.row_count, 0), coalesce(hashed.sha256, {NO_ROWS_SHA256}))
)
SELECT *, count(*) OVER () AS differences FROM differing ORDER BY window_start, what LIMIT $5
"""  # noqa: S608 - put together from constants

# The first window after $2 and before $3 with which those from $2 on hold more than $4 rows, or as many proofs as $5,
# which are more than there are buckets; it looks at no more proofs than that. $1: resolution.
WINDOW_AFTER = """
SELECT window_start
FROM (
    SELECT window_start, sum(row_count) OVER from_the_first AS rows, count(*) OVER from_the_first AS proofs
    FROM (
        SELECT window_start, row_count FROM window_closing
        WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
        ORDER BY window_start LIMIT $5
    ) AS ahead
    WINDOW from_the_first AS (ORDER BY window_start)
) AS held
WHERE (rows > $4 OR proofs >= $5) AND window_start > $2 ORDER BY window_start LIMIT 1
"""

# The first time at or after $2 and before $3 at which there is anything. $1: resolution.
NEXT_TIME = """
SELECT least((SELECT min(measured_at) FROM reading WHERE measured_at >= $2 AND measured_at < $3),
             (SELECT min(window_start) FROM window_closing
              WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3),
             (SELECT min(window_start) FROM measurement
              WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3))
"""

# What bounds verification: where closing began and has come to, how many buckets there are, and from when on readings
# are still kept.
BOUNDS = """
SELECT opened_at,
       (SELECT min(closed_until) FROM window_frontier WHERE resolution_minutes = $1) AS closed_until,
       (SELECT count(*) FROM window_frontier WHERE resolution_minutes = $1) AS buckets,
       (SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1) AS dropped_until,
       (SELECT min((regexp_match(pg_get_expr(relpartbound, oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
        FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = 'reading'::regclass) AS readings_from
FROM window_closed WHERE resolution_minutes = $1
"""

# What holds for a range of window starts: the grace at its start and where that changes, what is in force for windows
# without a proof, and whether any window was forced.
CIRCUMSTANCES = """
SELECT (SELECT grace FROM window_grace WHERE resolution_minutes = $1 AND from_start <= $2
        ORDER BY from_start DESC LIMIT 1) AS grace,
       (SELECT min(from_start) FROM window_grace
        WHERE resolution_minutes = $1 AND from_start > $2 AND from_start < $3) AS grace_changes,
       (SELECT revision FROM catalog_revision) AS catalog_revision,
       EXISTS (SELECT FROM window_forced
               WHERE resolution_minutes = $1 AND from_start < $3 AND until_start > $2) AS is_forced
"""

DROPPED_UNTIL = "SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1"

READING_AFTER = """
SELECT measured_at FROM reading WHERE measured_at >= $1 AND measured_at < $2 ORDER BY measured_at OFFSET $3 LIMIT 1
"""

COUNT_CLOSED = """
SELECT count(DISTINCT window_start) FROM window_closing
WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
"""
