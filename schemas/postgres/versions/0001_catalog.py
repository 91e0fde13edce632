"""The tables of the catalog."""

from schemas.postgres.sql_file import run_sql_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0001_catalog.sql")
