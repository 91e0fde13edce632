"""Catalog exports."""

from schemas.postgres.sql_file import run_sql_file

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0016_catalog_exports.sql")
