"""Runs one plain SQL file inside the migration's transaction."""

from pathlib import Path

from alembic import op


def run_sql_file(name: str) -> None:
    """Execute every statement of the file beside this module.

    The driver's own connection takes a script of many statements, which SQLAlchemy's prepared ones do not.
    """
    script = (Path(__file__).parent / name).read_text(encoding="utf-8")
    adapter = op.get_bind().connection.dbapi_connection
    if adapter is None:
        raise RuntimeError("the migration lost its connection")
    adapter.run_async(lambda connection: connection.execute(script))
