-- Closed windows. Owned by services/windowing.

-- All windows of a resolution that start before closed_until are closed in this bucket of meters. Windows in which
-- nothing arrived leave no other trace.
CREATE TABLE window_frontier (
    resolution_minutes smallint NOT NULL CHECK (resolution_minutes IN (1, 5, 15, 60)),
    bucket             smallint NOT NULL,
    closed_until       timestamptz NOT NULL,
    PRIMARY KEY (resolution_minutes, bucket)
);

-- The minimum over the buckets, moved on by whoever closed the last one: windows of the resolution that start before
-- closed_until are closed for every meter.
CREATE TABLE window_closed (
    resolution_minutes smallint PRIMARY KEY,
    -- Where the first closing began: earlier windows are empty by definition.
    opened_at          timestamptz NOT NULL,
    closed_until       timestamptz NOT NULL
);

-- The proof of one closed window of one bucket that has rows.
CREATE TABLE window_closing (
    resolution_minutes smallint NOT NULL,
    window_start       timestamptz NOT NULL,
    bucket             smallint NOT NULL,
    -- Readings that arrived up to here (inclusive) are in.
    cut_off            timestamptz NOT NULL,
    -- The configurations in force were read as known at this revision.
    catalog_revision   bigint NOT NULL,
    row_count          integer NOT NULL,
    -- Over the canonical rows, in the order of meter_id.
    sha256             bytea NOT NULL,
    -- {"topic/partition": next offset} when it was closed.
    offsets            jsonb NOT NULL,
    closed_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (resolution_minutes, window_start, bucket)
);

CREATE TABLE measurement (
    window_start       timestamptz NOT NULL,
    meter_id           integer NOT NULL,
    organization_id    integer NOT NULL,
    resolution_minutes smallint NOT NULL,
    intervals_present  smallint NOT NULL,
    intervals_expected smallint NOT NULL,
    pulses             bigint NOT NULL,
    -- Exact, in Wh; NULL where the utility has none.
    energy_wh          numeric,
    -- Exact, in the unit of the configuration in force at window_start; NULL where the utility has none.
    volume             numeric,
    PRIMARY KEY (resolution_minutes, window_start, organization_id, meter_id)
) PARTITION BY LIST (resolution_minutes);
CREATE TABLE measurement_1m PARTITION OF measurement FOR VALUES IN (1) PARTITION BY RANGE (window_start);
CREATE TABLE measurement_5m PARTITION OF measurement FOR VALUES IN (5) PARTITION BY RANGE (window_start);
CREATE TABLE measurement_15m PARTITION OF measurement FOR VALUES IN (15) PARTITION BY RANGE (window_start);
CREATE TABLE measurement_60m PARTITION OF measurement FOR VALUES IN (60) PARTITION BY RANGE (window_start);
