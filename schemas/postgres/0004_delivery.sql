-- Runs, parts and attempts of the export jobs. Owned by services/delivery.

-- A job's place in its slots, and who works on it now. Parts of a job go out in order, so the job is what is claimed.
CREATE TABLE export_job_progress (
    organization_id         integer NOT NULL,
    job_id                  integer NOT NULL,
    -- Of what is to be done next: which process does it, and to which host:port it goes ('' where the settings are
    -- wrong). Follows the job's versions.
    transport               text NOT NULL CHECK (transport IN ('https', 'sftp', 'ftps')),
    destination             text NOT NULL,
    -- The newest version of the job that the columns here take account of.
    seen_version            integer NOT NULL,
    -- The first slot for which no run has been planned; its end is NULL once the job has been deleted: never due.
    next_slot_start         timestamptz NOT NULL,
    next_slot_end           timestamptz,
    next_resolution_minutes smallint NOT NULL,
    -- Wall clock. When somebody works on the job next; while it is claimed, the end of the lease. NULL: it rests until
    -- the windows of its next slot are closed, or is stopped.
    next_attempt_at         timestamptz,
    lease_owner             text,
    lease_until             timestamptz,
    -- Each claim adds one; a result is recorded only under the epoch it was claimed with.
    epoch                   bigint NOT NULL DEFAULT 0,
    -- Set when an answer means that trying again is useless; nothing is sent until the job is resumed. Wall clock, but
    -- never before export_job.resumed_at.
    stopped_at              timestamptz,
    -- A stable code such as http_401, and a sentence for people.
    stopped_reason          text,
    stopped_detail          text,
    PRIMARY KEY (organization_id, job_id)
);
CREATE INDEX export_job_progress_due ON export_job_progress (transport, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX export_job_progress_resting ON export_job_progress (transport, next_resolution_minutes, next_slot_end)
    WHERE next_attempt_at IS NULL AND stopped_at IS NULL;
CREATE INDEX export_job_progress_stopped ON export_job_progress (transport, organization_id, job_id)
    WHERE stopped_at IS NOT NULL;

CREATE TABLE export_run (
    organization_id  integer NOT NULL,
    job_id           integer NOT NULL,
    slot_start       timestamptz NOT NULL,
    slot_end         timestamptz NOT NULL,
    -- Pinned when planned: the job's version and the names, units and sites as known at this revision.
    job_version      integer NOT NULL,
    catalog_revision bigint NOT NULL,
    -- planned -> frozen -> delivered; empty: no row, nothing to send; skipped: the job was paused.
    state            text NOT NULL
                     CHECK (state IN ('planned', 'frozen', 'delivered', 'empty', 'skipped')),
    part_count       integer NOT NULL DEFAULT 0,
    row_count        bigint NOT NULL DEFAULT 0,
    byte_count       bigint NOT NULL DEFAULT 0,
    planned_at       timestamptz NOT NULL DEFAULT now(),
    frozen_at        timestamptz,
    finished_at      timestamptz,
    PRIMARY KEY (organization_id, job_id, slot_start)
);
CREATE INDEX export_run_unfinished ON export_run (organization_id, job_id, slot_start)
    WHERE state IN ('planned', 'frozen');

-- A part is a range of the run's rows in their order; its bytes are rendered anew for each attempt and must have the
-- size and hash recorded here at the first rendering.
CREATE TABLE export_part (
    organization_id   integer NOT NULL,
    job_id            integer NOT NULL,
    slot_start        timestamptz NOT NULL,
    part              integer NOT NULL CHECK (part >= 1),
    first_measured_at timestamptz NOT NULL,
    first_meter_id    integer NOT NULL,
    row_count         integer NOT NULL CHECK (row_count > 0),
    byte_count        integer NOT NULL,
    sha256            bytea NOT NULL,
    state             text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered')),
    attempt_count     integer NOT NULL DEFAULT 0,
    next_attempt_at   timestamptz,
    delivered_at      timestamptz,
    PRIMARY KEY (organization_id, job_id, slot_start, part)
);
CREATE INDEX export_part_waiting ON export_part (organization_id, job_id, slot_start, part) WHERE state = 'waiting';

CREATE TABLE delivery_attempt (
    organization_id integer NOT NULL,
    job_id          integer NOT NULL,
    slot_start      timestamptz NOT NULL,
    part            integer NOT NULL,
    attempt         integer NOT NULL,
    -- Wall clock.
    started_at      timestamptz NOT NULL,
    finished_at     timestamptz NOT NULL,
    outcome         text NOT NULL CHECK (outcome IN ('delivered', 'retry', 'stop')),
    -- A stable code such as http_503, timeout, certificate_refused.
    reason          text NOT NULL,
    -- What the receiver answered, shortened, for people.
    detail          text NOT NULL,
    PRIMARY KEY (organization_id, job_id, slot_start, part, attempt)
);
