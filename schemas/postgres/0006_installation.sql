-- Which installation this database is: one row, made once, changed by nobody. It stands in the ids that receivers see,
-- so that the parts of two installations, or of one that was set up anew, never look like repetitions of each other.
CREATE TABLE installation (
    is_only         boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    installation_id text NOT NULL CHECK (installation_id ~ '^[0-9a-f]{8}$')
);
INSERT INTO installation (installation_id) VALUES (left(gen_random_uuid()::text, 8));
