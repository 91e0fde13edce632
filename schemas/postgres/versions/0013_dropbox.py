"""The hosted SFTP folder's accounts, keys and files."""

from schemas.postgres.sql_file import run_sql_file

revision = "0013"
down_revision = "0010"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0013_dropbox.sql")
