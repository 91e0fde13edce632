"""What tells that a record kills the process that reads it."""

from schemas.postgres.sql_file import run_sql_file

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0007_ingest_crashes.sql")
