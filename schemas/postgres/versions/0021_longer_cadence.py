"""Nothing expected of meters that report less often than a resolution."""

from schemas.postgres.sql_file import run_sql_file

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0021_longer_cadence.sql")
