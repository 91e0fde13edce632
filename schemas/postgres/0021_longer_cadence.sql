-- Of a meter that reports less often than a resolution nothing is expected there: no reading of it fits into a window.

-- The windows that start in [from_start, until_start) while a meter reports, as known at a catalog revision: it is
-- configured and some device reports it. One row for each stretch under one configuration.
CREATE FUNCTION reporting_stretches(
    of_organization integer, of_resolution integer, from_start timestamptz, until_start timestamptz,
    known_revision bigint, of_sites integer[]
) RETURNS TABLE (
    meter_id integer, site_id integer, begins timestamptz, ends timestamptz, windows bigint, cadence_minutes integer
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
           c.cadence_minutes::integer
    FROM configured c
    JOIN attached USING (meter_id)
    CROSS JOIN LATERAL unnest(
        attached.spans * tstzmultirange(tstzrange(greatest(c.valid_from, from_start), least(c.valid_until, until_start)))
    ) AS stretch
    WHERE c.valid_from < c.valid_until AND c.valid_from < until_start AND c.valid_until > from_start
      AND (of_sites IS NULL OR c.site_id = ANY (of_sites))
      AND window_starts(lower(stretch), upper(stretch), of_resolution) > 0
$$;

-- The windows of these in which a meter must have a row: those that are no shorter than its cadence.
CREATE OR REPLACE FUNCTION expected_windows(
    of_organization integer, of_resolution integer, from_start timestamptz, until_start timestamptz,
    known_revision bigint, of_sites integer[]
) RETURNS TABLE (
    meter_id integer, site_id integer, begins timestamptz, ends timestamptz, windows bigint, intervals_each integer
) LANGUAGE sql STABLE PARALLEL SAFE ROWS 1000 AS $$
    SELECT r.meter_id, r.site_id, r.begins, r.ends, r.windows, of_resolution / r.cadence_minutes
    FROM reporting_stretches(of_organization, of_resolution, from_start, until_start, known_revision, of_sites) AS r
    WHERE r.cadence_minutes <= of_resolution
$$;
