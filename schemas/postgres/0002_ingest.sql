-- What ingest stores. Owned by services/ingest.

CREATE TABLE ingest_progress (
    topic          text NOT NULL,
    partition      integer NOT NULL,
    -- The first offset that is not stored yet.
    next_offset    bigint NOT NULL,
    -- The arrival of the last record stored: everything that arrived before it has been stored. NULL: nothing yet.
    watermark      timestamptz,
    -- The arrival of the first record ever stored from this partition.
    first_arrival  timestamptz,
    -- Who owns the partition: each owner adds one and writes only while it finds its own number here.
    epoch          bigint NOT NULL,
    owner          text NOT NULL,
    stored_count   bigint NOT NULL DEFAULT 0,
    refused_count  bigint NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
);

-- The newest version of each reading. The key begins with the time: inserts append, a window is one range.
-- (revision, arrived_at, source_topic, source_partition, source_offset, source_place) is the version's place in the
-- total order. source_topic: 0 readings.bridge, 1 readings.logger, the lexicographic order of their names.
CREATE TABLE reading (
    measured_at      timestamptz NOT NULL,
    arrived_at       timestamptz NOT NULL,
    -- Pulses in the interval, or the register at its end.
    value            bigint NOT NULL,
    source_offset    bigint NOT NULL,
    meter_id         integer NOT NULL,
    revision         integer NOT NULL,
    source_partition integer NOT NULL,
    source_place     smallint NOT NULL,
    interval_minutes smallint NOT NULL,
    source_topic     smallint NOT NULL,
    is_register      boolean NOT NULL,
    PRIMARY KEY (measured_at, meter_id)
) PARTITION BY RANGE (measured_at);

-- Every version that is not the newest.
CREATE TABLE reading_superseded (
    measured_at      timestamptz NOT NULL,
    arrived_at       timestamptz NOT NULL,
    value            bigint NOT NULL,
    source_offset    bigint NOT NULL,
    meter_id         integer NOT NULL,
    revision         integer NOT NULL,
    source_partition integer NOT NULL,
    source_place     smallint NOT NULL,
    interval_minutes smallint NOT NULL,
    source_topic     smallint NOT NULL,
    is_register      boolean NOT NULL,
    PRIMARY KEY (measured_at, meter_id, revision, arrived_at, source_topic, source_partition, source_offset,
                 source_place)
) PARTITION BY RANGE (measured_at);

-- A newer version displaces the row; the row it displaces is kept, whoever wrote the update. As a trigger, because
-- only the update itself knows which version it found under its row lock when two writers meet.
CREATE FUNCTION keep_superseded_reading() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO reading_superseded SELECT old.*;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_superseded AFTER UPDATE ON reading FOR EACH ROW EXECUTE FUNCTION keep_superseded_reading();

CREATE TABLE rejected_reading (
    topic         text NOT NULL,
    partition     integer NOT NULL,
    source_offset bigint NOT NULL,
    -- The reading's place in its record, from 0; -1: the record as a whole.
    source_place  smallint NOT NULL,
    arrived_at    timestamptz NOT NULL,
    reason        text NOT NULL,
    -- What exactly was wrong, for people.
    detail        text NOT NULL,
    device_id     text,
    -- The reading (or the whole record) as it came.
    original      bytea NOT NULL,
    PRIMARY KEY (topic, partition, source_offset, source_place)
);
CREATE INDEX rejected_reading_by_arrival ON rejected_reading (arrived_at);
