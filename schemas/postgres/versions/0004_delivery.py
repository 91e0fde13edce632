"""The tables of the delivery."""

from schemas.postgres.sql_file import run_sql_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0004_delivery.sql")
