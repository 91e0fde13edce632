-- Failed runs that nobody wants any more: given up, they hold no rows against retention.

ALTER TABLE export_request
    DROP CONSTRAINT export_request_kind_check,
    ADD CONSTRAINT export_request_kind_check
        CHECK (kind IN ('run_now', 'retry', 'resend', 'backfill', 'recover', 'give_up')),
    -- A give-up concerns one run, or the failed runs of the slots that end by range_end.
    DROP CONSTRAINT export_request_check,
    ADD CONSTRAINT export_request_range_check CHECK (CASE kind
        WHEN 'backfill' THEN range_start IS NOT NULL AND range_end IS NOT NULL
        WHEN 'give_up' THEN range_start IS NULL AND (slot_start IS NULL) <> (range_end IS NULL)
        ELSE range_start IS NULL AND range_end IS NULL END);
-- Give-ups are done beside what else was asked of a job: they need not wait until it is resumed.
CREATE INDEX export_request_give_up ON export_request (request_id) WHERE kind = 'give_up';

-- given_up: it had failed, and somebody said that it is wanted no more. Its parts stay on record as they are.
ALTER TABLE export_run
    DROP CONSTRAINT export_run_state_check,
    ADD CONSTRAINT export_run_state_check
        CHECK (state IN ('planned', 'frozen', 'delivered', 'empty', 'skipped', 'failed', 'given_up'));
