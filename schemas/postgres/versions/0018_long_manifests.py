"""Several manifests for a run of very many parts."""

from schemas.postgres.sql_file import run_sql_file

revision = "0018"
down_revision = "0016"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0018_long_manifests.sql")
