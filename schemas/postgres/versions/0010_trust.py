"""Requests to delivery, failed runs, manifests and notifications."""

from schemas.postgres.sql_file import run_sql_file

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0010_trust.sql")
