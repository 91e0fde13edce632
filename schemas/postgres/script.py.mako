"""${message}. A migration's SQL stands in a file of its own beside this folder."""

from schemas.postgres.sql_file import run_sql_file

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply the file."""
    run_sql_file("${up_revision}_${slug}.sql")
