"""Requests to delivery, failed runs, manifests and notifications."""

from schemas.postgres.sql_file import run_sql_file

revision = "0011"
down_revision = "0006"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0011_trust.sql")
