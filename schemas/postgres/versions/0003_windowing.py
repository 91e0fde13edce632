"""The tables of the windowing."""

from schemas.postgres.sql_file import run_sql_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0003_windowing.sql")
