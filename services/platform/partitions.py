"""Partitions of tables that are cut by time, made on demand without stopping readers or writers of the others."""

from datetime import datetime, timedelta
from typing import NamedTuple

from services.platform.postgres import Connection

# One transaction at a time makes partitions of anything; the number is arbitrary but ours.
_PARTITION_LOCK = 7_316_043


class TimePartition(NamedTuple):
    """A partition `name` of `parent` for times at or after `start` and before `end`."""

    parent: str
    name: str
    start: datetime
    end: datetime


async def create_partitions(connection: Connection, partitions: list[TimePartition]) -> None:
    """Create those that do not exist. Call it in a transaction of its own: it holds a lock until the commit.

    A partition is made as a table of its own and then attached, because CREATE TABLE … PARTITION OF would lock every
    reader and writer of the parent out for a moment. Names are made by us, never by users.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _PARTITION_LOCK)
    existing = {
        row["relname"]
        for row in await connection.fetch(
            "SELECT relname FROM pg_class WHERE relname = ANY($1::text[])", [partition.name for partition in partitions]
        )
    }
    for partition in partitions:
        if partition.name in existing:
            continue
        await connection.execute(
            f"CREATE TABLE {partition.name} (LIKE {partition.parent} INCLUDING ALL);"
            f"ALTER TABLE {partition.parent} ATTACH PARTITION {partition.name} "
            f"FOR VALUES FROM ('{partition.start.isoformat()}') TO ('{partition.end.isoformat()}')"
        )


async def drop_partitions(connection: Connection, partitions: list[TimePartition], *, lock_timeout: timedelta) -> None:
    """Drop those that exist, with all they hold. Call it in a transaction of its own.

    Their parents are locked for a moment, and who comes meanwhile waits for as long as we do: at most `lock_timeout`
    for each, then asyncpg.LockNotAvailableError.
    """
    milliseconds = lock_timeout // timedelta(milliseconds=1)
    await connection.execute("SELECT set_config('lock_timeout', $1, true)", f"{milliseconds}ms")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _PARTITION_LOCK)
    await connection.execute(f"DROP TABLE IF EXISTS {', '.join(partition.name for partition in partitions)}")
