-- What operators see and decide about ingest. Owned by services/ingest; the `meterpost` command writes by its SQL.

-- The readings of about the last thousand (a setting), by what became of them. Nearly all refused: ingest stops.
ALTER TABLE ingest_progress
    ADD COLUMN recent_stored  integer NOT NULL DEFAULT 0,
    ADD COLUMN recent_refused integer NOT NULL DEFAULT 0;

-- A refused reading that was published again, as a new arrival. The row in rejected_reading stays as it is.
CREATE TABLE rejected_replay (
    topic         text NOT NULL,
    partition     integer NOT NULL,
    source_offset bigint NOT NULL,
    source_place  smallint NOT NULL,
    replayed_at   timestamptz NOT NULL DEFAULT now(),
    replayed_by   text NOT NULL,
    PRIMARY KEY (topic, partition, source_offset, source_place, replayed_at)
);

-- Records that the broker removed before they were read: from_offset up to, but not including, to_offset. Ingest finds
-- the gap and stops; an operator accepts it, which moves ingest_progress to its end. Accepted gaps stay, so that
-- records before next_offset = records read + records of accepted gaps.
CREATE TABLE ingest_gap (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    from_offset bigint NOT NULL,
    to_offset   bigint NOT NULL CHECK (to_offset > from_offset),
    found_at    timestamptz NOT NULL DEFAULT now(),
    accepted_at timestamptz,
    accepted_by text,
    reason      text,
    PRIMARY KEY (topic, partition, from_offset),
    CHECK ((accepted_at IS NULL) = (accepted_by IS NULL) AND (accepted_at IS NULL) = (reason IS NULL))
);

-- Until allowed_until (wall clock) ingest does not stop when nearly everything of the topic is refused.
CREATE TABLE ingest_refusal_allowance (
    topic         text NOT NULL,
    allowed_at    timestamptz NOT NULL DEFAULT now(),
    allowed_until timestamptz NOT NULL,
    allowed_by    text NOT NULL,
    reason        text NOT NULL,
    PRIMARY KEY (topic, allowed_at)
);

-- Who decided what, and why. Rows are only ever added.
CREATE TABLE operator_action (
    action_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    acted_at  timestamptz NOT NULL DEFAULT now(),
    -- user@host of the operating system.
    acted_by  text NOT NULL,
    action    text NOT NULL,
    details   jsonb NOT NULL
);
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', tg_table_name;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_action
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
