"""The tables of ingest's operators."""

from schemas.postgres.sql_file import run_sql_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0005_ingest_operations.sql")
