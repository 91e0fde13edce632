"""The catalog and the export jobs: the tables that people change."""
