"""The hosted SFTP folder's accounts, keys and files."""

from schemas.postgres.sql_file import run_sql_file

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("0012_dropbox.sql")
