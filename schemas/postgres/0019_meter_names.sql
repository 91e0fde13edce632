-- A process that keeps meters' names reads those that came since, without going through all.
CREATE INDEX meter_configuration_by_revision ON meter_configuration (revision);
