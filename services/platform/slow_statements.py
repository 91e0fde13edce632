"""Statements of PostgreSQL that are not done in time, told apart from a server that is away."""

import functools
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from services.platform.errors import Unavailable

if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

LONGEST_SHOWN = 200
# With these the client begins and ends transactions: a server that does not do them does not answer at all.
_ALWAYS_QUICK = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


class StatementTooSlow(Unavailable):
    """A statement was ended before it was done, by our limit or by the server: trying again may help, or never."""


def _named(method: str) -> Any:
    """Return a method of a connection whose time-outs say which statement it was."""
    original = getattr(asyncpg.Connection, method)

    @functools.wraps(original)
    async def call(connection: _Connection, query: str, *args: Any, **more: Any) -> Any:
        begun = time.monotonic()
        try:
            return await original(connection, query, *args, **more)
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            if query.startswith(_ALWAYS_QUICK):
                raise
            why = f"the server said: {error}" if isinstance(error, asyncpg.QueryCanceledError) else "our limit"
            raise StatementTooSlow(
                f"PostgreSQL had not finished a statement after {time.monotonic() - begun:.1f} s, when it was ended "
                f"({why}); it is tried again. If it always ends like this, find out in pg_stat_activity whether locks "
                f"or other work hold it up, and run ANALYZE; the statement: {_shown(query)}"
            ) from error

    return call


class NamingConnection(_Connection):
    """A connection that raises StatementTooSlow where a statement takes longer than it may."""

    execute = _named("execute")
    executemany = _named("executemany")
    fetch = _named("fetch")
    fetchrow = _named("fetchrow")
    fetchval = _named("fetchval")
    copy_from_query = _named("copy_from_query")
    copy_to_table = _named("copy_to_table")
    copy_records_to_table = _named("copy_records_to_table")


def _shown(query: str) -> str:
    """Return the beginning of a statement on one line; its values are not part of it."""
    line = " ".join(query.split())
    return line if len(line) <= LONGEST_SHOWN else line[:LONGEST_SHOWN] + "…"
