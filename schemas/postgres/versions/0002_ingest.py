"""The tables of the ingest."""

from schemas.postgres.sql_file import run_sql_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0002_ingest.sql")
