"""Who may use the HTTP API, and the audit log."""

from schemas.postgres.sql_file import run_sql_file

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0013_access.sql")
