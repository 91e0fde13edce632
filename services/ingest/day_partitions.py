"""How both reading tables are cut by day of measured_at (UTC): days are made ahead, and dropped by retention.

Beside the loop, on a connection of its own. Dropping needs both tables for a moment; it waits for them only so long
that nobody notices, and tries again later. A day is old by the clock of arrivals, never by the wall clock, and only
once every partition and every resolution's windows have left it behind: so a replay, and a windowing that was away,
find their readings. What was refused is dropped by the clock of arrivals, too (`rejected_retention.py`).
"""

import asyncio
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import asyncpg
import structlog

from services.ingest.rejected_retention import drop_rejected
from services.platform.errors import MeterpostError
from services.platform.metrics import INGEST_DAYS_DROPPED
from services.platform.partitions import TimePartition, create_partitions, drop_partitions
from services.platform.postgres import Pool, transaction, wait_or_stop

TABLES = ("reading", "reading_superseded")
DAYS_AHEAD = 2
EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 60.0
LOCK_TIMEOUT = timedelta(milliseconds=300)
log = structlog.get_logger()

# The oldest is NULL where a partition has no watermark yet, the windows' where none was ever closed.
_CLOCKS = """
    SELECT max(watermark) AS newest, CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END AS oldest,
           (SELECT min(closed_until) FROM window_closed) AS windows
    FROM ingest_progress WHERE topic = ANY ($1::text[])
"""
_PARTITIONS = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent IN ('reading'::regclass, 'reading_superseded'::regclass)
"""
_DAY_NAME = re.compile(r"(?:reading|reading_superseded)_(\d{8})")


class Clocks(NamedTuple):
    """The clock of arrivals: of the partition that is ahead, of the last one, and where windows have been closed to."""

    newest: datetime | None
    oldest: datetime | None
    windows: datetime | None


def partition_name(table: str, day: date) -> str:
    """Return the name of a table's partition for a day."""
    return f"{table}_{day:%Y%m%d}"


def day_partitions(day: date) -> list[TimePartition]:
    """Return the partitions of both tables for a day."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return [TimePartition(table, partition_name(table, day), start, start + timedelta(days=1)) for table in TABLES]


class DayKeeper:
    """Makes the days to come and drops the days that are over. Any number of processes may do so at once."""

    def __init__(
        self,
        pool: Pool,
        topics: Iterable[str],
        keep: timedelta,
        keep_rejected: timedelta | None = None,
        known_days: set[date] | None = None,
    ) -> None:
        """`keep`: how far a day must lie behind the clock of arrivals to be dropped.

        `keep_rejected`: how far the arrival of what was refused must; None: that is kept for ever. `known_days`: the
        days whose partitions the process need not ask for; those that are made here are added.
        """
        self._pool = pool
        self._topics = list(topics)
        self._keep = keep
        self._keep_rejected = keep_rejected
        self._known_days = set() if known_days is None else known_days

    async def run(self, stopping: asyncio.Event) -> None:
        """Look every hour until told to stop; what did not work is tried again a minute later."""
        while not stopping.is_set():
            try:
                await self.look()
            except (MeterpostError, asyncpg.PostgresError) as error:
                log.warning("days_not_kept", error=str(error), retry_in_seconds=AGAIN_SECONDS)
                await wait_or_stop(stopping, AGAIN_SECONDS)
            else:
                await wait_or_stop(stopping, EVERY_SECONDS)

    async def look(self) -> None:
        """Make and drop what is due. Raises Unavailable where a table is in use or the server away."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_CLOCKS, self._topics)
            clocks = Clocks(*(row or (None, None, None)))
            names = [one["relname"] for one in await connection.fetch(_PARTITIONS)]
        if clocks.newest is not None:
            today = clocks.newest.date()
            ahead = [today + timedelta(days=days) for days in range(DAYS_AHEAD + 1)]
            await create_partitions(self._pool, [one for day in ahead for one in day_partitions(day)])
            self._known_days.update(ahead)
        for day in sorted(self._over(clocks, names)):
            self._known_days.discard(day)
            async with transaction(self._pool) as connection:
                await drop_partitions(connection, day_partitions(day), lock_timeout=LOCK_TIMEOUT)
            INGEST_DAYS_DROPPED.inc()
            log.info("day_dropped", day=day.isoformat())
        if self._keep_rejected is not None and clocks.oldest is not None:
            await drop_rejected(self._pool, self._topics, clocks.oldest - self._keep_rejected)

    def _over(self, clocks: Clocks, names: Iterable[str]) -> set[date]:
        """Return the days whose last instant lies behind what is kept."""
        if clocks.oldest is None or clocks.windows is None:
            return set()
        first_kept = (min(clocks.oldest, clocks.windows) - self._keep).date()
        matches = [match for name in names if (match := _DAY_NAME.fullmatch(name))]
        return {day for match in matches if (day := date.fromisoformat(match[1])) < first_kept}
