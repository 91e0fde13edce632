-- What is needed to say which readings a closed window missed, and to close windows that a stuck partition holds open.

-- The grace with which windows were closed that start at from_start or later, until the next row of the bucket. A
-- window without rows leaves no proof, so nothing else tells its cut-off. Owned by services/windowing.
CREATE TABLE window_grace (
    resolution_minutes smallint NOT NULL,
    bucket             smallint NOT NULL,
    from_start         timestamptz NOT NULL,
    grace              interval NOT NULL,
    PRIMARY KEY (resolution_minutes, bucket, from_start)
);
INSERT INTO window_grace
SELECT resolution_minutes, bucket, '-infinity',
       coalesce((SELECT cut_off - window_start - resolution_minutes * interval '1 minute' FROM window_closing
                 ORDER BY closed_at DESC LIMIT 1), interval '5 minutes')
FROM window_frontier;

-- An operator's decision: windows that end at closes_until or before are closed without waiting for some partitions.
-- Written by the `meterpost` command; the windowing workers honour it. Rows are only ever added.
CREATE TABLE window_force (
    force_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    closes_until timestamptz NOT NULL,
    -- As topic/partition. The others are waited for as ever.
    partitions   text[] NOT NULL CHECK (cardinality(partitions) > 0),
    requested_at timestamptz NOT NULL DEFAULT now(),
    requested_by text NOT NULL,
    reason       text NOT NULL CHECK (reason <> '')
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON window_force
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The windows that were closed by such a decision: those of a bucket that start in [from_start, until_start), with rows
-- or without. What they hold arrived up to their cut-off *and* stood before these offsets; whatever was stored later is
-- late for them, whenever it arrived. Owned by services/windowing.
CREATE TABLE window_forced (
    resolution_minutes smallint NOT NULL,
    bucket             smallint NOT NULL,
    from_start         timestamptz NOT NULL,
    until_start        timestamptz NOT NULL CHECK (until_start > from_start),
    force_id           bigint NOT NULL REFERENCES window_force,
    -- {"source_topic/source_partition": next offset}, with the numbers that readings carry.
    stored_before      jsonb NOT NULL,
    closed_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (resolution_minutes, bucket, from_start)
);

-- The decision by which the window was closed; NULL: as ever, when everything up to its cut-off was stored.
ALTER TABLE window_closing ADD COLUMN force_id bigint REFERENCES window_force;

-- Whether a version had been stored when a window was closed; NULL offsets: the window was not forced, so it had.
CREATE FUNCTION was_stored(stored_before jsonb, source_topic smallint, source_partition integer, source_offset bigint)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT stored_before IS NULL
        OR coalesce(source_offset < (stored_before ->> (source_topic || '/' || source_partition))::bigint, false)
$$;

-- How many windows of a resolution start in [from_instant, until_instant).
CREATE FUNCTION window_starts(from_instant timestamptz, until_instant timestamptz, resolution_minutes integer)
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT greatest(0, ceil(extract(epoch FROM until_instant) / (resolution_minutes * 60))
                     - ceil(extract(epoch FROM from_instant) / (resolution_minutes * 60)))::bigint
$$;

-- What a person asks of a meter: which devices ever reported it.
CREATE INDEX input_attachment_by_meter ON input_attachment (meter_id);
CREATE INDEX bridge_attachment_by_meter ON bridge_attachment (meter_id);

-- The windows that start in [from_start, until_start) in which a meter must report, as known at a catalog revision: it
-- is configured and some device reports it. One row for each stretch under one configuration.
CREATE FUNCTION expected_windows(
    of_organization integer, of_resolution integer, from_start timestamptz, until_start timestamptz,
    known_revision bigint, of_sites integer[]
) RETURNS TABLE (
    meter_id integer, site_id integer, begins timestamptz, ends timestamptz, windows bigint, intervals_each integer
) LANGUAGE sql STABLE PARALLEL SAFE ROWS 1000 AS $$
    WITH configured AS (
        SELECT c.meter_id, c.site_id, c.cadence_minutes, c.valid_from,
               lead(c.valid_from, 1, 'infinity') OVER (PARTITION BY c.meter_id ORDER BY c.valid_from, c.revision)
                   AS valid_until
        FROM meter m JOIN meter_configuration c USING (meter_id)
        WHERE m.organization_id = of_organization AND c.revision <= known_revision
    ), on_input AS (
        SELECT a.meter_id, a.valid_from,
               lead(a.valid_from, 1, 'infinity') OVER (PARTITION BY a.device_id, a.input
                                                       ORDER BY a.valid_from, a.revision) AS valid_until
        FROM device d JOIN input_attachment a USING (device_id)
        WHERE d.organization_id = of_organization AND a.revision <= known_revision
    ), on_bridge AS (
        SELECT a.meter_id, a.attached, a.valid_from,
               lead(a.valid_from, 1, 'infinity') OVER (PARTITION BY a.device_id, a.meter_id
                                                       ORDER BY a.valid_from, a.revision) AS valid_until
        FROM device d JOIN bridge_attachment a USING (device_id)
        WHERE d.organization_id = of_organization AND a.revision <= known_revision
    ), attached AS (
        SELECT a.meter_id, range_agg(tstzrange(a.valid_from, a.valid_until)) AS spans
        FROM (
            SELECT i.meter_id, i.valid_from, i.valid_until FROM on_input i WHERE i.meter_id IS NOT NULL
            UNION ALL
            SELECT b.meter_id, b.valid_from, b.valid_until FROM on_bridge b WHERE b.attached
        ) a
        WHERE a.valid_from < a.valid_until AND a.valid_from < until_start AND a.valid_until > from_start
        GROUP BY a.meter_id
    )
    SELECT c.meter_id, c.site_id, lower(stretch), upper(stretch),
           window_starts(lower(stretch), upper(stretch), of_resolution),
           greatest(of_resolution / c.cadence_minutes, 1)
    FROM configured c
    JOIN attached USING (meter_id)
    CROSS JOIN LATERAL unnest(
        attached.spans * tstzmultirange(tstzrange(greatest(c.valid_from, from_start), least(c.valid_until, until_start)))
    ) AS stretch
    WHERE c.valid_from < c.valid_until AND c.valid_from < until_start AND c.valid_until > from_start
      AND (of_sites IS NULL OR c.site_id = ANY (of_sites))
      AND window_starts(lower(stretch), upper(stretch), of_resolution) > 0
$$;
-- What became of them: for each meter, over the windows that were expected, intervals present and expected and the
-- windows with a row. Present are counted by the cadence of now, and never more in a window than it expects.
CREATE FUNCTION completeness(
    of_organization integer, of_resolution integer, from_start timestamptz, until_start timestamptz,
    known_revision bigint, of_sites integer[]
) RETURNS TABLE (
    meter_id integer, site_id integer, windows bigint, windows_present bigint, intervals_expected bigint,
    intervals_present bigint, last_window_start timestamptz
) LANGUAGE sql STABLE PARALLEL SAFE ROWS 1000 AS $$
    WITH expected AS MATERIALIZED (
        SELECT * FROM expected_windows(of_organization, of_resolution, from_start, until_start, known_revision, of_sites)
    ), present AS (
        SELECT e.meter_id, count(*) AS windows, max(m.window_start) AS last_window_start,
               sum(least(m.intervals_present * e.intervals_each / m.intervals_expected, e.intervals_each)) AS intervals
        FROM measurement m
        JOIN expected e ON e.meter_id = m.meter_id AND m.window_start >= e.begins AND m.window_start < e.ends
        WHERE m.resolution_minutes = of_resolution AND m.organization_id = of_organization
          AND m.window_start >= from_start AND m.window_start < until_start
        GROUP BY e.meter_id
    )
    SELECT e.meter_id, (array_agg(e.site_id ORDER BY e.begins DESC))[1], sum(e.windows)::bigint,
           coalesce(max(p.windows), 0)::bigint, sum(e.windows * e.intervals_each)::bigint,
           coalesce(max(p.intervals), 0)::bigint, max(p.last_window_start)
    FROM expected e LEFT JOIN present p USING (meter_id)
    GROUP BY e.meter_id
$$;

-- Filled when the run is planned (a run is planned when all its windows are closed) and when it is frozen. NULL: not
-- frozen, or found to be empty among many at once.
ALTER TABLE export_run
    ADD COLUMN is_forced          boolean NOT NULL DEFAULT false,
    ADD COLUMN intervals_present  bigint,
    ADD COLUMN intervals_expected bigint,
    ADD COLUMN silent_meter_count integer;
