"""The configurations of meters by revision."""

from schemas.postgres.sql_file import run_sql_file

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0019_meter_names.sql")
