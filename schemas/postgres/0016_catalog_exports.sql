-- Catalog exports: jobs without a resolution, and the records of the catalog in the order of their keys.

-- Owned by the API (and the `meterpost` command). A catalog job runs daily and has the resolution 0, which is none.
ALTER TABLE export_job_version
    DROP CONSTRAINT export_job_version_check,
    ADD CONSTRAINT export_job_version_check CHECK (CASE data
        WHEN 'catalog' THEN (frequency_minutes, resolution_minutes) = (1440, 0)
        ELSE (frequency_minutes, resolution_minutes) IN
             ((1440, 15), (1440, 60), (60, 5), (60, 15), (60, 60), (15, 1), (15, 5), (15, 15), (5, 1), (5, 5)) END);

-- Owned by services/delivery. Where a part of a catalog begins, `KIND:NUMBER:TEXT`; NULL: a part of measurements.
ALTER TABLE export_part ADD COLUMN first_record text;

-- Records are read in the order of their keys, page by page.
DROP INDEX site_by_organization;
CREATE INDEX site_by_organization ON site (organization_id, site_id);
CREATE INDEX device_by_organization ON device (organization_id, device_id COLLATE "C");

-- What hangs on a device at an instant, as known at a revision; `input` NULL: a bridge, which names the meter.
CREATE FUNCTION attached_at(of_device text, at_time timestamptz, at_revision bigint)
RETURNS TABLE (input smallint, meter_id integer, valid_from timestamptz) LANGUAGE sql STABLE AS $$
    SELECT i.input, i.meter_id, i.valid_from
    FROM (SELECT DISTINCT ON (a.input) a.input, a.meter_id, a.valid_from FROM input_attachment a
          WHERE a.device_id = of_device AND a.valid_from <= at_time AND a.revision <= at_revision
          ORDER BY a.input, a.valid_from DESC, a.revision DESC) i
    WHERE i.meter_id IS NOT NULL
    UNION ALL
    SELECT NULL, b.meter_id, b.valid_from
    FROM (SELECT DISTINCT ON (a.meter_id) a.meter_id, a.valid_from, a.attached FROM bridge_attachment a
          WHERE a.device_id = of_device AND a.valid_from <= at_time AND a.revision <= at_revision
          ORDER BY a.meter_id, a.valid_from DESC, a.revision DESC) b
    WHERE b.attached
$$;

-- The records of an organization's catalog that are in force at an instant, as known at a revision: sites (1),
-- devices (2), inputs (3), meters (4), each by its key, at most `most` from a key on. With sites, what belongs to
-- those: their meters, what these hang on. The same question has the same answer for ever: rows are never changed,
-- except of devices that nothing ever hung on, which are in no catalog.
CREATE FUNCTION catalog_records(
    of_organization integer, at_time timestamptz, at_revision bigint, at_sites integer[],
    from_kind integer, from_number bigint, from_text text, most integer
) RETURNS TABLE (
    kind integer, key_number bigint, key_text text, name text, site_id integer, site_name text, time_zone text,
    device_id text, device_kind text, input smallint, meter_id integer, meter_type text, unit text,
    units_per_pulse text, normalization_factor text, calorific_value text, register_modulus bigint,
    cadence_minutes smallint, serial_number text, valid_from timestamptz
) LANGUAGE plpgsql STABLE SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    done integer;
BEGIN
    IF from_kind <= 1 THEN
        RETURN QUERY
        SELECT 1, s.site_id::bigint, '', d.name, s.site_id, d.name, d.time_zone, NULL::text, NULL::text,
               NULL::smallint, NULL::integer, NULL::text, NULL::text, NULL::text, NULL::text, NULL::text,
               NULL::bigint, NULL::smallint, NULL::text, nullif(d.valid_from, '-infinity')
        FROM site s
        CROSS JOIN LATERAL (
            SELECT e.name, e.time_zone, e.valid_from FROM site_description e
            WHERE e.site_id = s.site_id AND e.valid_from <= at_time AND e.revision <= at_revision
            ORDER BY e.valid_from DESC, e.revision DESC LIMIT 1) d
        WHERE s.organization_id = of_organization AND s.revision <= at_revision AND s.site_id >= from_number
          AND (at_sites IS NULL OR s.site_id = ANY (at_sites))
        ORDER BY s.site_id LIMIT most;
        GET DIAGNOSTICS done = ROW_COUNT;
        most := most - done;
        from_kind := 2; from_number := 0; from_text := '';
    END IF;
    IF from_kind = 2 AND most > 0 THEN
        RETURN QUERY
        SELECT 2, 0::bigint, d.device_id, NULL::text, NULL::integer, NULL::text, NULL::text, d.device_id, d.kind,
               NULL::smallint, NULL::integer, NULL::text, NULL::text, NULL::text, NULL::text, NULL::text,
               NULL::bigint, NULL::smallint, NULL::text, NULL::timestamptz
        FROM device d
        WHERE d.organization_id = of_organization AND d.revision <= at_revision
          AND d.device_id COLLATE "C" >= from_text AND NOT (from_number > 0 AND d.device_id = from_text)
          AND (EXISTS (SELECT FROM input_attachment a WHERE a.device_id = d.device_id AND a.revision <= at_revision)
               OR EXISTS (SELECT FROM bridge_attachment a WHERE a.device_id = d.device_id AND a.revision <= at_revision))
          AND (at_sites IS NULL OR EXISTS (
              SELECT FROM attached_at(d.device_id, at_time, at_revision) a
              CROSS JOIN LATERAL (
                  SELECT c.site_id FROM meter_configuration c
                  WHERE c.meter_id = a.meter_id AND c.valid_from <= at_time AND c.revision <= at_revision
                  ORDER BY c.valid_from DESC, c.revision DESC LIMIT 1) m
              WHERE m.site_id = ANY (at_sites)))
        ORDER BY d.device_id COLLATE "C" LIMIT most;
        GET DIAGNOSTICS done = ROW_COUNT;
        most := most - done;
        from_kind := 3; from_number := 0; from_text := '';
    END IF;
    IF from_kind = 3 AND most > 0 THEN
        RETURN QUERY
        SELECT 3, n.key_number, d.device_id, NULL::text, NULL::integer, NULL::text, NULL::text, d.device_id, d.kind,
               a.input, a.meter_id, NULL::text, NULL::text, NULL::text, NULL::text, NULL::text,
               NULL::bigint, NULL::smallint, NULL::text, nullif(a.valid_from, '-infinity')
        FROM device d
        CROSS JOIN LATERAL attached_at(d.device_id, at_time, at_revision) a
        CROSS JOIN LATERAL (
            -- Behind all numbers that inputs can have.
            SELECT coalesce(a.input::bigint, 32768 + a.meter_id::bigint) AS key_number) n
        CROSS JOIN LATERAL (
            SELECT c.site_id FROM meter_configuration c
            WHERE c.meter_id = a.meter_id AND c.valid_from <= at_time AND c.revision <= at_revision
            ORDER BY c.valid_from DESC, c.revision DESC LIMIT 1) m
        WHERE d.organization_id = of_organization AND d.revision <= at_revision
          AND d.device_id COLLATE "C" >= from_text
          AND NOT (d.device_id = from_text AND n.key_number < from_number)
          AND (at_sites IS NULL OR m.site_id = ANY (at_sites))
        ORDER BY d.device_id COLLATE "C", n.key_number LIMIT most;
        GET DIAGNOSTICS done = ROW_COUNT;
        most := most - done;
        from_kind := 4; from_number := 0; from_text := '';
    END IF;
    IF most > 0 THEN
        RETURN QUERY
        SELECT 4, m.meter_id::bigint, '', c.name, c.site_id, d.name, d.time_zone, NULL::text, NULL::text,
               NULL::smallint, m.meter_id, m.meter_type, c.unit, c.units_per_pulse::text,
               c.normalization_factor::text, c.calorific_value::text, c.register_modulus, c.cadence_minutes,
               m.serial_number, nullif(c.valid_from, '-infinity')
        FROM meter m
        CROSS JOIN LATERAL (
            SELECT f.* FROM meter_configuration f
            WHERE f.meter_id = m.meter_id AND f.valid_from <= at_time AND f.revision <= at_revision
            ORDER BY f.valid_from DESC, f.revision DESC LIMIT 1) c
        LEFT JOIN LATERAL (
            SELECT e.name, e.time_zone FROM site_description e
            WHERE e.site_id = c.site_id AND e.valid_from <= at_time AND e.revision <= at_revision
            ORDER BY e.valid_from DESC, e.revision DESC LIMIT 1) d ON true
        WHERE m.organization_id = of_organization AND m.revision <= at_revision AND m.meter_id >= from_number
          AND (at_sites IS NULL
               OR m.meter_id IN (SELECT f.meter_id FROM meter_configuration f WHERE f.site_id = ANY (at_sites)))
          AND (at_sites IS NULL OR c.site_id = ANY (at_sites))
        ORDER BY m.meter_id LIMIT most;
    END IF;
END
$$;
