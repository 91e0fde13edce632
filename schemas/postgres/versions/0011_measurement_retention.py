"""Retention of closed windows."""

from schemas.postgres.sql_file import run_sql_file

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0011_measurement_retention.sql")
