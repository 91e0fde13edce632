"""The SQL of windowing: where things stand, and closing a range of windows in one transaction."""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import asyncpg

from services.core.times import floor_to
from services.core.windows import RESOLUTIONS_MINUTES, due_until, platform_watermark
from services.platform.crash_points import crash_point
from services.platform.errors import MeterpostError, OperatorNeeded, Unavailable
from services.platform.kafka import Partition
from services.platform.metrics import WINDOW_CLOSE_SECONDS, WINDOW_ROWS, WINDOWS_CLOSED
from services.platform.partitions import create_partitions
from services.platform.postgres import Connection, Pool, transaction
from services.platform.topics import READINGS_LOGGER
from services.windowing.announcements import BucketKey
from services.windowing.bucket_classes import simplest_classes
from services.windowing.closing_sql import CLOSE, CLOSE_ONE, PLAN_FOR_THE_RANGE
from services.windowing.forcing import DuePoint, Force, furthest, mark_forced, open_forces, tell_forced
from services.windowing.measurement_partitions import partition_of
from services.windowing.settings import WindowingSettings

_FRONTIER = "SELECT closed_until FROM window_frontier WHERE resolution_minutes = $1 AND bucket = $2"
_WATERMARKS = "SELECT topic, partition, watermark FROM ingest_progress WHERE topic = ANY ($1::text[])"
_LOCK = "SELECT closed_until FROM window_frontier WHERE resolution_minutes = $1 AND bucket = $2 FOR UPDATE"
_LOCK_COMPANIONS = """
    SELECT bucket FROM window_frontier
    WHERE resolution_minutes = $1 AND bucket <> $2 AND closed_until = $3 AND bucket = ANY ($4::smallint[])
    ORDER BY bucket FOR UPDATE SKIP LOCKED
"""
_ADVANCE = """
    UPDATE window_frontier SET closed_until = $3 WHERE resolution_minutes = $1 AND bucket = ANY ($2::smallint[])
"""
# Almost always the grace is what it was, and this writes nothing.
_NOTE_GRACE = """
    INSERT INTO window_grace (resolution_minutes, bucket, from_start, grace)
    SELECT $1, bucket, $3, $4
    FROM unnest($2::smallint[]) AS bucket
    CROSS JOIN LATERAL (
        SELECT grace FROM window_grace AS known
        WHERE known.resolution_minutes = $1 AND known.bucket = bucket.bucket ORDER BY from_start DESC LIMIT 1
    ) AS before
    WHERE before.grace <> $4
"""
_MOVE_CLOSED = """
    UPDATE window_closed SET closed_until = reached.closed_until
    FROM (SELECT min(closed_until) AS closed_until FROM window_frontier WHERE resolution_minutes = $1) AS reached
    WHERE resolution_minutes = $1 AND window_closed.closed_until < reached.closed_until
    RETURNING window_closed.closed_until
"""
_NEXT_READING = "SELECT min(measured_at) FROM reading WHERE measured_at >= $1 AND measured_at < $2"
_READING_AFTER = """
    SELECT measured_at FROM reading WHERE measured_at >= $1 AND measured_at < $2 ORDER BY measured_at OFFSET $3 LIMIT 1
"""
# A superseded version may be the one that counts, and its interval may differ from the newest version's.
_HAS_READINGS = """
    SELECT EXISTS (SELECT FROM reading WHERE measured_at >= $1 AND measured_at < $2 AND interval_minutes <= $3)
        OR EXISTS (SELECT FROM reading_superseded
                   WHERE measured_at >= $1 AND measured_at < $2 AND interval_minutes <= $3)
"""
_DAYS_WITH_READINGS = """
    SELECT DISTINCT date_trunc('day', measured_at, 'UTC') AS day FROM (
        SELECT measured_at FROM reading WHERE measured_at >= $1 AND measured_at < $2 AND interval_minutes <= $3
        UNION ALL
        SELECT measured_at FROM reading_superseded
        WHERE measured_at >= $1 AND measured_at < $2 AND interval_minutes <= $3
    ) AS eligible
"""
_ROWS_WORTH_SHARING = 5_000
"""Rows of the last statement from which several connections close the next windows side by side."""


class Progress(NamedTuple):
    """How far ingest has stored a partition; None: nothing yet."""

    watermark: datetime | None
    first_arrival: datetime | None


class Chunk(NamedTuple):
    """Windows to close next: those that start in [start, end). Before `start` there is nothing to close."""

    start: datetime
    end: datetime


class WindowOccupied(MeterpostError):  # noqa: N818 - a state of the tables
    """A window that is open holds already what closing it is to write: somebody wrote that by hand."""

    def __init__(self, what: str, frontier: datetime) -> None:
        """`frontier`: where its bucket stands."""
        super().__init__(what)
        self.frontier = frontier


class Step(NamedTuple):
    """What to do next for a bucket that stands at `frontier`; without a chunk, nothing."""

    frontier: datetime
    chunk: Chunk | None = None
    force_id: int | None = None
    """The operator's decision by which the chunk is closed before everything is stored."""


FORCED_DAYS = 1
"""A chunk that is closed by force spans no more: it is closed as a whole, whether anything is in it or not."""


class WindowStore:
    """What windowing reads and writes in PostgreSQL. Every method raises Unavailable while the server is away."""

    def __init__(
        self,
        pool: Pool,
        settings: WindowingSettings,
        reading_topics: tuple[str, ...],
        known_partitions: set[str] | None = None,
    ) -> None:
        """`known_partitions`: those that are there and known to every session, to which others add, too."""
        self._pool = pool
        self._settings = settings
        self._topics = list(reading_topics)
        self._logger_topic = next(topic for topic in reading_topics if topic.endswith(READINGS_LOGGER))
        self._known_partitions = set() if known_partitions is None else known_partitions
        self._last_rows = 0

    async def progress(self) -> dict[Partition, Progress]:
        """Return how far ingest has stored the reading topics."""
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT topic, partition, watermark, first_arrival FROM ingest_progress WHERE topic = ANY ($1)",
                self._topics,
            )
        return {(row["topic"], row["partition"]): Progress(row["watermark"], row["first_arrival"]) for row in rows}

    async def frontiers(self) -> dict[BucketKey, datetime]:
        """Return where the buckets stand; empty before the first opening.

        Raises OperatorNeeded where they are not as many as the settings say: a meter's bucket would change, and its
        windows would be closed twice or never.
        """
        async with transaction(self._pool) as connection:
            rows = await connection.fetch("SELECT resolution_minutes, bucket, closed_until FROM window_frontier")
        found = {BucketKey(row["resolution_minutes"], row["bucket"]): row["closed_until"] for row in rows}
        if found and found.keys() != self.keys:
            count = max(key.bucket for key in found) + 1
            raise OperatorNeeded(
                f"windows were closed in {count} buckets, the settings say {self._settings.buckets}; "
                f"set METERPOST_BUCKETS to {count}"
            )
        return found

    @property
    def keys(self) -> set[BucketKey]:
        """Every bucket of every resolution."""
        return {
            BucketKey(resolution, bucket)
            for resolution in RESOLUTIONS_MINUTES
            for bucket in range(self._settings.buckets)
        }

    async def open(self, openings: Mapping[int, datetime]) -> None:
        """Let closing begin at `openings`, by resolution; nothing happens where it has begun."""
        keys = sorted(self.keys)
        async with transaction(self._pool) as connection:
            await connection.execute(
                "INSERT INTO window_closed (resolution_minutes, opened_at, closed_until) "
                "SELECT resolution, opening, opening FROM unnest($1::smallint[], $2::timestamptz[]) "
                "AS opened (resolution, opening) ORDER BY resolution ON CONFLICT DO NOTHING",
                sorted(openings),
                [openings[resolution] for resolution in sorted(openings)],
            )
            # From the table, so that of two workers that open at once both buckets and resolutions are the winner's.
            await connection.execute(
                "INSERT INTO window_frontier (resolution_minutes, bucket, closed_until) "
                "SELECT resolution_minutes, bucket, opened_at FROM unnest($1::smallint[], $2::smallint[]) "
                "AS wanted (resolution_minutes, bucket) JOIN window_closed USING (resolution_minutes) "
                "WHERE NOT EXISTS (SELECT FROM window_frontier) "
                "ORDER BY resolution_minutes, bucket ON CONFLICT DO NOTHING",
                [key.resolution_minutes for key in keys],
                [key.bucket for key in keys],
            )
            await connection.execute(
                "INSERT INTO window_grace (resolution_minutes, bucket, from_start, grace) "
                "SELECT resolution_minutes, bucket, '-infinity', $1 FROM window_frontier "
                "ORDER BY resolution_minutes, bucket ON CONFLICT DO NOTHING",
                self._settings.grace,
            )

    async def advance(self, key: BucketKey, due: datetime, *, is_one_window: bool = False) -> datetime | None:
        """Close the oldest windows of a bucket that start before `due`, as many as one statement takes.

        Returns where the bucket then stands; None where nothing is open yet. Other buckets that stand at the same
        place and that nobody else works on are closed along, because the readings are read once for all of them, or
        once for each of the connections that share the work. With `is_one_window` no more than one window is closed.
        However often and by however many it is called, each window is closed once: the frontier's row decides.
        Raises WindowOccupied where one of the bucket's windows holds something already.
        """
        step = await self._plan(key, due)
        if step is None or step.chunk is None:
            return None if step is None else step.frontier
        chunk = step.chunk
        if is_one_window:
            chunk = chunk._replace(end=min(chunk.end, chunk.start + timedelta(minutes=key.resolution_minutes)))
        await self._ensure_partitions(key.resolution_minutes, chunk, is_forced=step.force_id is not None)
        crash_point("windowing.claimed")
        # Buckets are closed and moved on independently, so one that fails takes nothing back from the others.
        close = partial(self._close_share, key, step, chunk)
        reached, *others = await asyncio.gather(*map(close, self._shares(key)), return_exceptions=True)
        if isinstance(reached, asyncpg.UniqueViolationError):
            # It may be another bucket's that was to be closed along. That one is told of when its own turn comes.
            [reached] = await asyncio.gather(close([key.bucket]), return_exceptions=True)
        for result in (reached, *others):
            if isinstance(result, asyncpg.CheckViolationError) and result.constraint_name is None:
                # The partition for a row was taken for there, and is not; what was not closed is closed next time.
                self._known_partitions.clear()
                raise Unavailable(f"PostgreSQL has no partition for a row of a closed window: {result}") from result
            if isinstance(result, BaseException) and not isinstance(result, asyncpg.UniqueViolationError):
                raise result
        assert isinstance(reached, datetime)  # noqa: S101 - the first share holds the bucket itself
        return reached

    def _shares(self, key: BucketKey) -> list[list[int]]:
        """Divide the buckets among the connections, where there is enough to do; the first share holds `key`'s."""
        buckets = [(key.bucket + step) % self._settings.buckets for step in range(self._settings.buckets)]
        is_worth_it = self._last_rows >= _ROWS_WORTH_SHARING
        count = min(self._settings.closing_connections, self._settings.buckets) if is_worth_it else 1
        return [buckets[number::count] for number in range(count)]

    async def _close_share(self, key: BucketKey, step: Step, chunk: Chunk, share: list[int]) -> datetime | None:
        """Close a chunk for those buckets of a share that stand where `key` does and that nobody else works on.

        `key` itself is waited for. Returns where it then stands, None for a share without it. Raises WindowOccupied
        where it is `key` alone, UniqueViolationError where it may be any of several.
        """
        started = time.monotonic()
        is_own = key.bucket in share
        async with transaction(self._pool) as connection:
            if step.force_id is not None:
                # What is closed and which offsets it is recorded with are of one moment. Others may store meanwhile.
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.execute(PLAN_FOR_THE_RANGE)
            buckets = []
            if is_own:
                locked: datetime = await connection.fetchval(_LOCK, *key)
                if locked != step.frontier:
                    return locked  # somebody else was faster
                buckets.append(key.bucket)
            companions = await connection.fetch(_LOCK_COMPANIONS, *key, step.frontier, share)
            buckets.extend(row["bucket"] for row in companions)
            if not buckets:
                return None
            try:
                windows, rows = await self._close(connection, key.resolution_minutes, chunk, buckets)
            except asyncpg.UniqueViolationError as error:
                if buckets == [key.bucket]:
                    raise WindowOccupied(f"{error.table_name}: {error.detail}", step.frontier) from error
                raise
            if step.force_id is not None:
                await mark_forced(
                    connection, key.resolution_minutes, chunk, buckets, step.force_id, self._topics, self._logger_topic
                )
            await connection.execute(_NOTE_GRACE, key.resolution_minutes, buckets, step.frontier, self._settings.grace)
            await connection.execute(_ADVANCE, key.resolution_minutes, buckets, chunk.end)
            crash_point("windowing.bucket_written")
        crash_point("windowing.bucket_closed")
        self._last_rows = rows * (self._settings.buckets // len(buckets))
        WINDOW_CLOSE_SECONDS.observe(time.monotonic() - started)
        WINDOWS_CLOSED.labels(str(key.resolution_minutes)).inc(windows)
        WINDOW_ROWS.inc(rows)
        if step.force_id is not None:
            tell_forced(key.resolution_minutes, chunk, len(buckets), step.force_id)
        return chunk.end if is_own else None

    async def _close(
        self, connection: Connection, resolution: int, chunk: Chunk, buckets: list[int]
    ) -> tuple[int, int]:
        if chunk.start >= chunk.end:
            return 0, 0
        is_one = chunk.end - chunk.start == timedelta(minutes=resolution)
        divisor, remainders = simplest_classes(buckets, self._settings.buckets)
        row = await connection.fetchrow(
            CLOSE_ONE if is_one else CLOSE,
            resolution,
            chunk.start,
            chunk.end,
            divisor,
            None if divisor == 1 else remainders,
            self._settings.grace,
            self._settings.register_largest_share_per_interval,
            self._topics,
            self._settings.buckets,
        )
        assert row is not None  # noqa: S101 - an aggregate always has its row
        return row["windows"], row["rows"]

    async def _plan(self, key: BucketKey, due: datetime) -> Step | None:
        """Return what to close next; None before the first opening."""
        resolution = timedelta(minutes=key.resolution_minutes)
        async with transaction(self._pool) as connection:
            await connection.execute(PLAN_FOR_THE_RANGE)
            frontier: datetime | None = await connection.fetchval(_FRONTIER, *key)
            if frontier is None:
                return None
            # Whoever sent the message: nothing closes before the tables say so.
            due = floor_to(due, resolution)
            allowed = await self._allowed(connection, key.resolution_minutes, frontier)
            if allowed is None or frontier >= min(due, allowed.until):
                return Step(frontier)
            due = min(due, allowed.until)
            if allowed.force_id is not None:
                # Readings are still stored while we look: nothing may be left out because it was not there just now.
                end = min(due, frontier + timedelta(days=FORCED_DAYS))
                return Step(frontier, Chunk(frontier, end), allowed.force_id)
            return Step(frontier, await self._next_chunk(connection, frontier, due, resolution))

    async def _allowed(self, connection: Connection, resolution_minutes: int, frontier: datetime) -> DuePoint | None:
        """Return how far the tables let a bucket be closed that stands at `frontier`."""
        rows = await connection.fetch(_WATERMARKS, self._topics)
        watermarks = {(row["topic"], row["partition"]): row["watermark"] for row in rows}
        watermark = platform_watermark(watermarks, watermarks)
        if watermark is not None:
            until = due_until(watermark, resolution_minutes, self._settings.grace)
            if until > frontier:
                return DuePoint(until, None)  # as far as it goes without force, it goes without
        forces = await open_forces(connection, frontier)
        return furthest(forces, watermarks, resolution_minutes, self._settings.grace)

    async def _next_chunk(
        self, connection: Connection, frontier: datetime, due: datetime, resolution: timedelta
    ) -> Chunk:
        """Return the windows that one statement closes, from the first reading on."""
        first = await self._next_reading(connection, frontier, due)
        if first is None:
            return Chunk(due, due)
        start = floor_to(first, resolution)
        end = min(due, start + timedelta(days=self._settings.statement_days))
        if end - start > resolution:
            beyond = await connection.fetchval(_READING_AFTER, start, end, self._settings.statement_readings)
            end = end if beyond is None else max(floor_to(beyond, resolution), start + resolution)
        return Chunk(start, end)

    async def forces(self) -> list[Force]:
        """Return the operators' decisions that are not carried out yet."""
        async with transaction(self._pool) as connection:
            return await open_forces(connection)

    async def _next_reading(self, connection: Connection, start: datetime, end: datetime) -> datetime | None:
        """Return the earliest time of a reading in [start, end); looks slice by slice, so few partitions are locked."""
        slice_ = timedelta(days=self._settings.statement_days)
        while start < end:
            found: datetime | None = await connection.fetchval(_NEXT_READING, start, min(start + slice_, end))
            if found is not None:
                return found
            start += slice_
        return None

    async def _ensure_partitions(self, resolution: int, chunk: Chunk, *, is_forced: bool) -> None:
        """Make the partitions that the chunk's rows go to, in transactions of their own; they stay if closing fails."""
        if chunk.start >= chunk.end:
            return
        first, last = partition_of(resolution, chunk.start), partition_of(resolution, chunk.end - timedelta(minutes=1))
        if first == last and first.name in self._known_partitions:
            return
        async with transaction(self._pool) as connection:
            if is_forced:  # a reading may still come
                needed = {first, last}
            elif first == last:  # to look for one reading is to look at few
                is_needed = await connection.fetchval(_HAS_READINGS, chunk.start, chunk.end, resolution)
                needed = {first} if is_needed else set()
            else:
                days = await connection.fetch(_DAYS_WITH_READINGS, chunk.start, chunk.end, resolution)
                needed = {partition_of(resolution, row["day"]) for row in days}
        missing = sorted(part for part in needed if part.name not in self._known_partitions)
        if missing:
            await create_partitions(self._pool, missing)
        self._known_partitions.update(part.name for part in missing)

    async def move_closed(self, resolution: int) -> datetime | None:
        """Note how far all buckets of a resolution are closed; returns it to the one caller who moved it, else None.

        To be called after the commit that moved a bucket, and now and then: of two workers who move the last two
        buckets at once, neither sees the other's before.
        """
        async with transaction(self._pool) as connection:
            reached: datetime | None = await connection.fetchval(_MOVE_CLOSED, resolution)
        return reached
