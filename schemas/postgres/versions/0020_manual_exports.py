"""Manual exports."""

from schemas.postgres.sql_file import run_sql_file

revision = "0020"
down_revision = "0013"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0020_manual_exports.sql")
