-- A run of very many parts has several manifests, one after the other in the job's chain, each of which lists some of the
-- parts: none is larger than what one request may be.
ALTER TABLE export_manifest
    -- Which of its run's manifests it is. They are the run's last parts, in this order.
    ADD COLUMN section integer NOT NULL DEFAULT 1 CHECK (section >= 1),
    DROP CONSTRAINT export_manifest_pkey,
    ADD PRIMARY KEY (organization_id, job_id, slot_start, section);
