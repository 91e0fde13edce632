"""Connection tests that are asked for over the HTTP API."""

from schemas.postgres.sql_file import run_sql_file

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0014_connection_tests.sql")
