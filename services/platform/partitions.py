"""Partitions of tables that are cut by time, made on demand without stopping readers or writers of the others."""

import asyncio
import time
from datetime import datetime, timedelta
from typing import NamedTuple

from services.platform.postgres import Connection, Pool, transaction

PLANNING_TIME = timedelta(seconds=2)
"""A statement has planned by then: it takes milliseconds, some tens with a thousand partitions."""
_LOOK_SECONDS = 0.005

# One transaction at a time makes partitions of anything; the number is arbitrary but ours.
_PARTITION_LOCK = 7_316_043


class TimePartition(NamedTuple):
    """A partition `name` of `parent` for times at or after `start` and before `end`."""

    parent: str
    name: str
    start: datetime
    end: datetime


# Who is planning while a partition is attached, with the list of partitions in hand that was read before: whoever holds
# a lock of the parent in a statement that is under way. Planning is over soon, so older statements are past it. Of
# sessions that hide since when (another user's, or track_activities is off) it is not known, so they are waited for.
_PLANNING = """
SELECT EXISTS (
    SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.relation = ANY ($1::regclass[]) AND l.granted AND a.pid <> pg_backend_pid()
      AND (a.state = 'active' AND a.query_start <= $2 AND a.query_start > $2::timestamptz - $3::interval
           OR a.query_start IS NULL))
"""


async def create_partitions(pool: Pool, partitions: list[TimePartition]) -> None:
    """Create those that do not exist, and return when every session knows them: rows belong in them only then.

    A partition is made as a table of its own and then attached, because CREATE TABLE … PARTITION OF would lock every
    reader and writer of the parent out for a moment. Names are made by us, never by users.

    Price of that: a session that is just reading the parent's list of partitions when one is attached keeps the list
    as it was, in all its statements to come, and finds no rows in the new partition, until it hears of another change
    of the parent. So once such sessions have read their list, the parent is changed, to what it is. Those that exist
    are told of, too: who made them may have ended before that, or not have waited long enough for a session that was
    frozen meanwhile.
    """
    async with transaction(pool) as connection:
        await _attach(connection, partitions)
    parents = sorted({partition.parent for partition in partitions})
    if parents:
        await _wait_for_planners(pool, parents)
        await _tell_sessions(pool, parents)


async def _attach(connection: Connection, partitions: list[TimePartition]) -> None:
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


async def _wait_for_planners(pool: Pool, parents: list[str]) -> None:
    """Wait until nobody plans by a list of partitions that was read before now; at most for as long as that takes."""
    async with transaction(pool) as connection:
        attached_at: datetime = await connection.fetchval("SELECT clock_timestamp()")
    ends = time.monotonic() + PLANNING_TIME.total_seconds()
    while time.monotonic() < ends:
        async with transaction(pool) as connection:
            if not await connection.fetchval(_PLANNING, parents, attached_at, PLANNING_TIME):
                return
        await asyncio.sleep(_LOOK_SECONDS)


async def _tell_sessions(pool: Pool, parents: list[str]) -> None:
    """Have every session read the parents' lists of partitions anew. Stops neither readers nor writers."""
    async with transaction(pool) as connection:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _PARTITION_LOCK)
        for parent in parents:
            column = await connection.fetchval(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 1", parent
            )
            await connection.execute(f"ALTER TABLE ONLY {parent} ALTER COLUMN {column} SET STATISTICS -1")


async def drop_partitions(connection: Connection, partitions: list[TimePartition], *, lock_timeout: timedelta) -> None:
    """Drop those that exist, with all they hold. Call it in a transaction of its own.

    Their parents are locked for a moment, and who comes meanwhile waits for as long as we do: at most `lock_timeout`
    for each, then asyncpg.LockNotAvailableError.
    """
    milliseconds = lock_timeout // timedelta(milliseconds=1)
    await connection.execute("SELECT set_config('lock_timeout', $1, true)", f"{milliseconds}ms")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _PARTITION_LOCK)
    await connection.execute(f"DROP TABLE IF EXISTS {', '.join(partition.name for partition in partitions)}")
