-- Registers, what is to be said of single meters' windows, and the readings as known at an instant.

-- A row of registers says between which readings its pulses lie; NULL in all four: a row of pulses.
ALTER TABLE measurement
    -- Sum of: 1 begins at a register from before the window, 2 a register rolled over, 4 a register was reset, 8 some
    -- readings were not counted. For 2, 4 and 8 meter_event has the details.
    ADD COLUMN flags             smallint NOT NULL DEFAULT 0,
    ADD COLUMN register_start    bigint,
    ADD COLUMN register_start_at timestamptz,
    ADD COLUMN register_end      bigint,
    ADD COLUMN register_end_at   timestamptz;
-- Where a meter's registers stood before some window, as verification asks. Rows of pulses cost nothing here.
CREATE INDEX measurement_register ON measurement (meter_id, window_start) WHERE register_end IS NOT NULL;

-- A windows's row says everything that its bytes were hashed over, this too: what a roll-over may amount to at most, as
-- a share of the modulus for each interval that went by. NULL: closed before registers counted.
ALTER TABLE window_closing ADD COLUMN register_share numeric;

-- Where a meter's registers stand at the end of its latest closed window with readings, so that closing looks at no
-- history. NULL in both: the meter has gone over to pulses. Meters that never sent a register have no row.
-- Owned by services/windowing.
CREATE TABLE meter_register (
    resolution_minutes smallint NOT NULL,
    meter_id           integer NOT NULL,
    register_value     bigint,
    register_at        timestamptz,
    PRIMARY KEY (resolution_minutes, meter_id),
    CHECK ((register_value IS NULL) = (register_at IS NULL))
) WITH (fillfactor = 50);

-- What closing found worth saying of one meter's window. Written with the window, never changed.
-- Owned by services/windowing.
CREATE TABLE meter_event (
    resolution_minutes smallint NOT NULL,
    window_start       timestamptz NOT NULL,
    organization_id    integer NOT NULL,
    meter_id           integer NOT NULL,
    kind               text NOT NULL CHECK (kind IN ('registers_begin', 'pulses_begin', 'register_rolled_over',
                       'register_reset', 'register_beyond_modulus', 'other_kind_ignored', 'overlap_ignored')),
    detail             jsonb NOT NULL,
    PRIMARY KEY (resolution_minutes, window_start, organization_id, meter_id, kind)
);
CREATE INDEX meter_event_by_meter ON meter_event (meter_id, resolution_minutes, window_start);

-- As sum, but exact in 64 bits (a window's readings amount to far less) and with a state of 8 bytes: the sums of all
-- meters are hashed in little memory, and quickly.
CREATE AGGREGATE bigint_sum(bigint) (sfunc = int8pl, stype = bigint, combinefunc = int8pl, parallel = safe);

-- The readings with from_time <= measured_at < until_time as they were known at the instant known_at: of each the newest
-- of the versions that had arrived by then. It answers for as long as superseded versions are kept.
CREATE FUNCTION reading_as_of(known_at timestamptz, from_time timestamptz, until_time timestamptz)
RETURNS SETOF reading LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT r.* FROM reading r
    WHERE r.measured_at >= from_time AND r.measured_at < until_time AND r.arrived_at <= known_at
    UNION ALL
    SELECT best.* FROM (
        SELECT DISTINCT ON (s.measured_at, s.meter_id) s.* FROM reading_superseded s
        WHERE s.measured_at >= from_time AND s.measured_at < until_time AND s.arrived_at <= known_at
        ORDER BY s.measured_at, s.meter_id, s.revision DESC, s.arrived_at DESC, s.source_topic DESC,
                 s.source_partition DESC, s.source_offset DESC, s.source_place DESC
    ) best
    WHERE EXISTS (
        SELECT FROM reading newest
        WHERE newest.measured_at = best.measured_at AND newest.meter_id = best.meter_id
          AND newest.measured_at >= from_time AND newest.measured_at < until_time AND newest.arrived_at > known_at
    )
$$;
