"""Late readings, forced closing, completeness."""

from schemas.postgres.sql_file import run_sql_file

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0009_late_and_forced.sql")
