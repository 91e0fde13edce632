-- Connection tests that are asked for over the HTTP API. They need no claim of the job, so that a job that is stopped,
-- paused or has not begun can be tried, too.

-- Owned by services/api: which version of which job's settings is to be tried.
CREATE TABLE connection_test (
    organization_id integer NOT NULL,
    job_id          integer NOT NULL REFERENCES export_job,
    test_id         bigint GENERATED ALWAYS AS IDENTITY,
    job_version     integer NOT NULL,
    -- The process of this transport answers.
    transport       text NOT NULL,
    -- Wall clock.
    requested_at    timestamptz NOT NULL,
    requested_by    text NOT NULL,
    PRIMARY KEY (organization_id, job_id, test_id)
);
CREATE INDEX connection_test_by_time ON connection_test (transport, requested_at);

-- Owned by services/delivery: who tries it, and what was found so far.
CREATE TABLE connection_test_result (
    organization_id integer NOT NULL,
    job_id          integer NOT NULL,
    test_id         bigint NOT NULL,
    -- Raised by each process that takes the test; only the last one's findings are written.
    epoch           integer NOT NULL DEFAULT 1,
    started_at      timestamptz NOT NULL,
    done_at         timestamptz,
    -- In their order: [{"step": …, "passed": …, "sentence": …}].
    steps           jsonb NOT NULL DEFAULT '[]',
    -- The key that an SFTP server showed and that is not approved, as `ssh-ed25519 AAAA…`.
    host_key        text NOT NULL DEFAULT '',
    -- Why nothing could be tried, for people.
    problem         text NOT NULL DEFAULT '',
    PRIMARY KEY (organization_id, job_id, test_id),
    -- Tests are forgotten by the API, their results with them.
    FOREIGN KEY (organization_id, job_id, test_id) REFERENCES connection_test ON DELETE CASCADE
);

-- Owned by services/api: a page of an organization's jobs or meters is read in the order of their ids.
DROP INDEX export_job_by_organization;
CREATE INDEX export_job_by_organization ON export_job (organization_id, job_id);
DROP INDEX meter_by_organization;
CREATE INDEX meter_by_organization ON meter (organization_id, meter_id);
