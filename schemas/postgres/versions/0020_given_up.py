"""Runs that were given up."""

from schemas.postgres.sql_file import run_sql_file

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0020_given_up.sql")
