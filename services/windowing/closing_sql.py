"""The statement that closes windows. It stands alone, because what leaves the product is what it says.

Parameters: $1 resolution in minutes, $2 and $3 the range of window starts, at or after and before, $4 the number of
buckets, $5 the buckets to close (NULL: all of them, which spares looking at each reading's meter), $6 the grace,
$7 the reading topics.
"""

_WINDOW_START = "date_bin($1::integer * interval '1 minute', measured_at, timestamptz 'epoch')"
_TO_CUT_OFF = "($1::integer * interval '1 minute' + $6::interval)"
_IN_BUCKETS = "($5::integer[] IS NULL OR meter_id % $4::integer = ANY ($5::integer[]))"
_IN_RANGE = f"measured_at >= $2::timestamptz AND measured_at < $3::timestamptz AND {_IN_BUCKETS}"

# The readings as known at their window's own cut-off: the newest version where it arrived in time, else the best of
# the versions that did. The second part asks for the newest version key by key: superseded versions are few.
_AS_OF_CUT_OFF = f"""
    SELECT {_WINDOW_START} AS window_start, meter_id, value, interval_minutes, is_register
    FROM reading
    WHERE {_IN_RANGE} AND arrived_at <= {_WINDOW_START} + {_TO_CUT_OFF}
    UNION ALL
    SELECT window_start, meter_id, value, interval_minutes, is_register
    FROM (
        SELECT DISTINCT ON (measured_at, meter_id)
               {_WINDOW_START} AS window_start, measured_at, meter_id, value, interval_minutes, is_register
        FROM reading_superseded
        WHERE {_IN_RANGE} AND arrived_at <= {_WINDOW_START} + {_TO_CUT_OFF}
        ORDER BY measured_at, meter_id, revision DESC, arrived_at DESC, source_topic DESC, source_partition DESC,
                 source_offset DESC, source_place DESC
    ) AS best
    WHERE (
        SELECT arrived_at FROM reading AS newest
        WHERE newest.measured_at = best.measured_at AND newest.meter_id = best.meter_id
          AND newest.measured_at >= $2::timestamptz AND newest.measured_at < $3::timestamptz  -- spares partitions
    ) > best.window_start + {_TO_CUT_OFF}
"""  # noqa: S608 - put together from the constants above

# intervals_present counts the minutes that readings cover in units of what is expected, rounded down, so it equals
# intervals_expected exactly when the readings cover the window, whatever their own intervals are.
#
# A configuration holds until the next one of its meter begins; of two that begin at the same instant the one with the
# lower revision holds for no time at all. A meter without any has rows of pulses without quantities.
#
# The hash is over one line per row, meter_id|organization_id|intervals_present|intervals_expected|pulses|energy_wh|
# volume, with nothing where there is no value, joined by line feeds, in UTF-8. trim_scale makes a number's text unique.
CLOSE = f"""
WITH known AS MATERIALIZED (
    SELECT revision,
           (SELECT jsonb_object_agg(topic || '/' || partition, next_offset)
            FROM ingest_progress WHERE topic = ANY ($7::text[])) AS offsets
    FROM catalog_revision
), as_of_cut_off AS ({_AS_OF_CUT_OFF}
), counted AS (
    -- Pulses only. A register's consumption is no sum: it is the difference to the register at the end of the meter's
    -- previous closed window, and would join as a second source of rows beside this one.
    SELECT window_start, meter_id, sum(value)::bigint AS pulses, sum(interval_minutes) AS covered_minutes
    FROM as_of_cut_off
    WHERE interval_minutes <= $1::integer AND NOT is_register
    GROUP BY window_start, meter_id
), configuration AS (
    SELECT meter_id, valid_from,
           lead(valid_from, 1, 'infinity') OVER (PARTITION BY meter_id ORDER BY valid_from, revision) AS valid_until,
           units_per_pulse, normalization_factor, calorific_value,
           greatest($1::integer / cadence_minutes, 1) AS intervals_expected
    FROM meter_configuration
    WHERE revision <= (SELECT revision FROM known) AND {_IN_BUCKETS}
), inserted AS (
    INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                             intervals_expected, pulses, energy_wh, volume)
    SELECT window_start, counted.meter_id, organization_id, $1::integer,
           covered_minutes * coalesce(intervals_expected, $1::integer) / $1::integer,
           coalesce(intervals_expected, $1::integer), pulses,
           trim_scale(CASE
               WHEN utility IN ('electricity', 'heat') THEN pulses * units_per_pulse * 1000
               WHEN utility = 'gas' THEN pulses * units_per_pulse * normalization_factor * calorific_value * 1000
           END),
           trim_scale(CASE
               WHEN utility IN ('water', 'air') THEN pulses * units_per_pulse
               WHEN utility = 'gas' THEN pulses * units_per_pulse * normalization_factor
           END)
    FROM counted
    JOIN meter USING (meter_id)
    LEFT JOIN configuration ON configuration.meter_id = counted.meter_id
                           AND window_start >= valid_from AND window_start < valid_until
    ORDER BY window_start, organization_id, counted.meter_id
    RETURNING window_start, meter_id, organization_id, intervals_present, intervals_expected, pulses, energy_wh, volume
), hashed AS (
    SELECT window_start, meter_id % $4::integer AS bucket, count(*) AS row_count,
           sha256(convert_to(string_agg(
               meter_id || '|' || organization_id || '|' || intervals_present || '|' || intervals_expected || '|'
               || pulses || '|' || coalesce(energy_wh::text, '') || '|' || coalesce(volume::text, ''),
               E'\\n' ORDER BY meter_id
           ), 'UTF8')) AS sha256
    FROM inserted
    GROUP BY window_start, meter_id % $4::integer
), closed AS (
    INSERT INTO window_closing (resolution_minutes, window_start, bucket, cut_off, catalog_revision, row_count, sha256,
                                offsets)
    SELECT $1::integer, window_start, bucket, window_start + {_TO_CUT_OFF}, revision, row_count, sha256, offsets
    FROM hashed CROSS JOIN known
    RETURNING row_count
)
SELECT count(*) AS windows, coalesce(sum(row_count), 0)::bigint AS rows FROM closed
"""  # noqa: S608 - put together from the constants above
