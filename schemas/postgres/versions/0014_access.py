"""Who may use the HTTP API, and the audit log."""

from schemas.postgres.sql_file import run_sql_file

revision = "0014"
down_revision = "0010"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0014_access.sql")
