-- What operators ask of delivery, runs that failed, manifests and notifications.

-- Owned by the API (and the `meterpost` command): whether a run of this version ends with a manifest.
ALTER TABLE export_job_version ADD COLUMN manifest boolean NOT NULL DEFAULT false;

-- Owned by the API (and the `meterpost` command): what somebody asked of delivery beside the schedule. Rows are only
-- added, each under the lock of its job's row, so that a job's ids commit in their order.
CREATE TABLE export_request (
    organization_id integer NOT NULL,
    job_id          integer NOT NULL REFERENCES export_job,
    request_id      bigint GENERATED ALWAYS AS IDENTITY,
    kind            text NOT NULL CHECK (kind IN ('run_now', 'retry', 'resend', 'backfill', 'recover')),
    -- The run that is meant: retry (NULL: all of the job) and resend.
    slot_start      timestamptz,
    -- The range that is meant: backfill. Platform's clock.
    range_start     timestamptz,
    range_end       timestamptz,
    requested_at    timestamptz NOT NULL DEFAULT now(),
    requested_by    text NOT NULL,
    PRIMARY KEY (organization_id, job_id, request_id),
    CHECK ((kind = 'backfill') = (range_start IS NOT NULL) AND (range_start IS NULL) = (range_end IS NULL)),
    CHECK (range_start < range_end),
    CHECK (kind <> 'resend' OR slot_start IS NOT NULL)
);

-- Owned by services/delivery: what became of a request. A backfill goes on until it is done.
CREATE TABLE export_request_result (
    organization_id integer NOT NULL,
    job_id          integer NOT NULL,
    request_id      bigint NOT NULL,
    -- A backfill has planned everything before this.
    planned_until   timestamptz,
    run_count       integer NOT NULL DEFAULT 0,
    done_at         timestamptz,
    -- For people.
    outcome         text NOT NULL DEFAULT '',
    PRIMARY KEY (organization_id, job_id, request_id)
);

-- The rest is owned by services/delivery.
ALTER TABLE export_job_progress
    -- Requests up to this one have been done.
    ADD COLUMN seen_request     bigint NOT NULL DEFAULT 0,
    -- Wall clock: the first failed attempt since the job's last success, or since it was resumed.
    ADD COLUMN failing_since    timestamptz,
    -- Runs that failed since the job's last delivered run, or since it was resumed.
    ADD COLUMN failed_run_count integer NOT NULL DEFAULT 0,
    -- What the organization was last told of the job.
    ADD COLUMN told             text NOT NULL DEFAULT 'well' CHECK (told IN ('well', 'failing', 'paused'));

-- failed: its destination took nothing for the whole retry window; its parts wait until somebody asks for them.
ALTER TABLE export_run
    DROP CONSTRAINT export_run_state_check,
    ADD CONSTRAINT export_run_state_check
        CHECK (state IN ('planned', 'frozen', 'delivered', 'empty', 'skipped', 'failed')),
    -- How often the whole run was sent again on request.
    ADD COLUMN resend_count integer NOT NULL DEFAULT 0;
CREATE INDEX export_run_failed ON export_run (organization_id, job_id, slot_start) WHERE state = 'failed';

ALTER TABLE export_part
    DROP CONSTRAINT export_part_row_count_check,
    -- The last part of a run that was asked to end with one; its bytes are in export_manifest, it has no rows.
    ADD COLUMN is_manifest      boolean NOT NULL DEFAULT false,
    -- Failed attempts since the last success or resume: how long the next one waits follows from it.
    ADD COLUMN failed_in_a_row  integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT export_part_row_count_check CHECK (is_manifest = (row_count = 0));

CREATE TABLE export_manifest (
    organization_id integer NOT NULL,
    job_id          integer NOT NULL,
    slot_start      timestamptz NOT NULL,
    -- The job's manifests in the order in which their runs were frozen; each names the hash of the one before.
    number          integer NOT NULL CHECK (number >= 1),
    body            bytea NOT NULL,
    sha256          bytea NOT NULL,
    PRIMARY KEY (organization_id, job_id, slot_start),
    UNIQUE (organization_id, job_id, number)
);

-- Owned by the API (and the `meterpost` command): whom to tell when a job of the organization fails.
CREATE TABLE notification_settings (
    organization_id integer PRIMARY KEY REFERENCES organization,
    emails          text[] NOT NULL DEFAULT '{}',
    webhook_url     text,
    ca_pem          text,
    -- Sealed: {"signing_secret:1": …}.
    sealed          jsonb NOT NULL DEFAULT '{}'
);

-- One message to one address, written in the transaction that changes the job's state, deleted never. Sent at least
-- once, with an id made of notification_id on each attempt, so that a receiver knows a repetition.
CREATE TABLE notification (
    organization_id integer NOT NULL,
    notification_id bigint GENERATED ALWAYS AS IDENTITY,
    job_id          integer NOT NULL,
    channel         text NOT NULL CHECK (channel IN ('email', 'webhook')),
    address         text NOT NULL,
    -- What is told: schemas/http/job-state.v1.schema.json.
    content         jsonb NOT NULL,
    created_at      timestamptz NOT NULL,
    -- NULL: sent, or given up.
    next_attempt_at timestamptz,
    attempt_count   integer NOT NULL DEFAULT 0,
    sent_at         timestamptz,
    -- What the last attempt met.
    problem         text NOT NULL DEFAULT '',
    PRIMARY KEY (organization_id, notification_id)
);
CREATE INDEX notification_due ON notification (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
