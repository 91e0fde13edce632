"""Retention of closed windows."""

from schemas.postgres.sql_file import run_sql_file

revision = "0012"
down_revision = "0009"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0012_measurement_retention.sql")
