-- How far retention has dropped closed windows, and what keeps it from dropping more. The partitions themselves are as
-- they were: fine resolutions by day, coarse ones by month.

-- One row a resolution, written whenever windowing looks. Owned by services/windowing.
CREATE TABLE measurement_retention (
    resolution_minutes smallint PRIMARY KEY,
    -- For how long rows are kept, by the clock of closing; NULL: for ever.
    keep               interval,
    -- The rows of windows that start before this were dropped; their proofs and events stay. NULL: none was.
    dropped_until      timestamptz,
    -- The first rows that would be dropped now if a job did not need them still; all NULL: none does.
    held_from          timestamptz,
    held_partitions    integer NOT NULL DEFAULT 0,
    held_by_job_id     integer,
    CHECK ((held_from IS NULL) = (held_by_job_id IS NULL))
);

-- Readings as known at an instant are asked for by the statement that closing is made of; nobody asks here.
DROP FUNCTION reading_as_of(timestamptz, timestamptz, timestamptz);
