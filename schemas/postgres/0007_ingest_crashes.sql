-- What tells that a record kills the process that reads it. Owned by services/ingest.

ALTER TABLE ingest_progress
    -- Where the partition stood when it was last claimed, and whether that owner let go of it, as all do that can.
    ADD COLUMN claimed_offset bigint,
    ADD COLUMN is_released    boolean NOT NULL DEFAULT true,
    -- Claims in a row before which the owner vanished without having stored anything.
    ADD COLUMN crash_count    integer NOT NULL DEFAULT 0;
