"""Manual exports."""

from schemas.postgres.sql_file import run_sql_file

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0015_manual_exports.sql")
