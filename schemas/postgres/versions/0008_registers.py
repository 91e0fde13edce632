"""Registers, events of meters, readings as of an instant."""

from schemas.postgres.sql_file import run_sql_file

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0008_registers.sql")
