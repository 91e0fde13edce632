-- Exports that somebody asks for: any range, computed from the readings as they are or as they were known.

-- Owned by the API (and the `meterpost` command): what is wanted. Rows are only added; of a row only the cancellation
-- is ever set.
CREATE TABLE manual_export (
    organization_id    integer NOT NULL REFERENCES organization,
    export_id          bigint GENERATED ALWAYS AS IDENTITY,
    -- Of whom at most three are worked on at a time.
    requested_by       text NOT NULL CHECK (requested_by <> ''),
    requested_at       timestamptz NOT NULL DEFAULT now(),
    -- The windows that start in [range_start, range_end).
    range_start        timestamptz NOT NULL,
    range_end          timestamptz NOT NULL CHECK (range_end > range_start),
    resolution_minutes smallint NOT NULL CHECK (resolution_minutes IN (1, 5, 15, 60)),
    -- NULL: all.
    site_ids           integer[],
    meter_ids          integer[],
    -- NULL: the newest versions, whenever they arrived.
    known_at           timestamptz,
    format             text NOT NULL CHECK (format IN ('csv', 'jsonl', 'parquet')),
    -- Names, sites and factors are those that were known at this revision.
    catalog_revision   bigint NOT NULL,
    cancelled_at       timestamptz,
    cancelled_by       text,
    PRIMARY KEY (organization_id, export_id),
    CHECK ((cancelled_at IS NULL) = (cancelled_by IS NULL))
);

-- The rest is owned by services/exports. Without a row here nobody has begun.
CREATE TABLE manual_export_progress (
    organization_id  integer NOT NULL,
    export_id        bigint NOT NULL,
    state            text NOT NULL CHECK (state IN ('running', 'done', 'failed', 'cancelled', 'expired')),
    -- Wall clock. When somebody works on it next; while it is claimed, the end of the lease. NULL: it is over.
    next_attempt_at  timestamptz,
    lease_owner      text NOT NULL,
    -- Each claim adds one; a chunk is recorded only under the epoch it was claimed with.
    epoch            bigint NOT NULL,
    -- Attempts in a row that found a server away.
    failed_in_a_row  integer NOT NULL DEFAULT 0,
    -- Fixed when it was begun: which meters, how they are read, and how much goes into a chunk. The file's bytes may
    -- depend on where the chunks begin.
    meter_ids        integer[] NOT NULL,
    is_selective     boolean NOT NULL,
    chunk_minutes    integer NOT NULL CHECK (chunk_minutes > 0),
    -- Everything that starts before this is in a chunk.
    position         timestamptz NOT NULL,
    row_count        bigint NOT NULL DEFAULT 0,
    -- Of the finished file.
    object_key       text,
    byte_count       bigint,
    sha256           bytea,
    started_at       timestamptz NOT NULL,
    finished_at      timestamptz,
    expires_at       timestamptz,
    -- A stable code and a sentence for people, where it failed or has to wait.
    problem_code     text,
    problem          text,
    PRIMARY KEY (organization_id, export_id)
);
CREATE INDEX manual_export_progress_due ON manual_export_progress (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX manual_export_progress_kept ON manual_export_progress (expires_at) WHERE expires_at IS NOT NULL;

-- A stretch of windows whose rows are in the store. Removed once the file is complete.
CREATE TABLE manual_export_chunk (
    organization_id integer NOT NULL,
    export_id       bigint NOT NULL,
    -- From 0; a stretch without rows has none.
    chunk           integer NOT NULL,
    epoch           bigint NOT NULL,
    row_count       integer NOT NULL CHECK (row_count > 0),
    byte_count      bigint NOT NULL,
    sha256          bytea NOT NULL,
    made_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, export_id, chunk)
);

-- Where a meter's registers stood at the end of the last chunk, so that the next one goes on from there. NULL in both:
-- it sent pulses, or nothing is known. Meters that send no register have no row. Removed with the chunks.
CREATE TABLE manual_export_register (
    organization_id integer NOT NULL,
    export_id       bigint NOT NULL,
    meter_id        integer NOT NULL,
    register_value  bigint,
    register_at     timestamptz,
    -- Not yet: what is here began with a chunk, without regard to what the meter sent before.
    is_looked_up    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (organization_id, export_id, meter_id),
    CHECK ((register_value IS NULL) = (register_at IS NULL))
);
