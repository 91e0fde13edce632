"""The id of the installation."""

from schemas.postgres.sql_file import run_sql_file

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0006_installation.sql")
