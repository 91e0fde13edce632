"""The SQL of ingest: claiming partitions, one transaction per batch, the registry's changes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import asyncpg
import structlog

from services.core.readings import ReadingVersion
from services.core.registry import BridgeAttachmentRow, InputAttachmentRow, RegistryChange
from services.core.times import MILLISECOND
from services.ingest.batch import Batch, Position, RejectedRow
from services.ingest.binary_copy import COLUMN_NAMES
from services.ingest.day_partitions import day_partitions, partition_name
from services.ingest.gaps import GapFound, record_gap
from services.ingest.progress_queries import allowances_of
from services.ingest.refusal_guard import Recent, TopicRefusals
from services.ingest.write_plan import EncodedPlan, encode_plan, merge_everything
from services.platform.crash_points import crash_point
from services.platform.errors import Superseded, Unavailable, UserError
from services.platform.kafka import Partition
from services.platform.metrics import INGEST_MERGED_BATCHES
from services.platform.partitions import create_partitions
from services.platform.postgres import Connection, Pool, transaction

Turn = Callable[[], Awaitable[None]]
"""Returns when the batch before is stored; raises when it never will be."""

log = structlog.get_logger()

COLUMNS = ReadingVersion._fields
_COLUMN_LIST = ", ".join(COLUMNS)
_ORDER = "revision, arrived_at, source_topic, source_partition, source_offset, source_place"
_NEWEST_FIRST = ", ".join(f"{column} DESC" for column in _ORDER.split(", "))
_ASSIGNMENTS = ", ".join(
    f"{column} = excluded.{column}" for column in COLUMNS if column not in {"measured_at", "meter_id"}
)
_EXCLUDED_ORDER = ", ".join(f"excluded.{column}" for column in _ORDER.split(", "))
_STORED_ORDER = ", ".join(f"stored.{column}" for column in _ORDER.split(", "))
_DAYS_AT_ONCE = 100

# Safe, because a batch and the progress of its partitions are one transaction: a crash of PostgreSQL that loses the
# last commits loses both, and we read those records again from where the database then says. Whoever builds on a commit
# (windowing) waits for the disk itself, and by that for everything before it.
#
# The lock hinders nobody; it marks the session as a writer, whatever it has touched so far, see _END_ZOMBIES.
_BEGIN_WRITING = """
    SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '{milliseconds}ms';
    LOCK TABLE ingest_progress IN ROW SHARE MODE
"""

_CLAIM = """
    INSERT INTO ingest_progress AS mine (topic, partition, next_offset, epoch, owner, claimed_offset, is_released)
    VALUES ($1, $2, $5, 1, $3, $5, false)
    ON CONFLICT (topic, partition) DO UPDATE
    SET epoch = mine.epoch + 1, owner = $3, updated_at = now(), claimed_offset = mine.next_offset, is_released = false,
        crash_count = CASE WHEN mine.claimed_offset <> mine.next_offset THEN 0
                           WHEN mine.is_released OR mine.epoch = $4 THEN mine.crash_count
                           ELSE mine.crash_count + 1 END
    RETURNING epoch, next_offset, watermark, first_arrival, recent_stored, recent_refused, crash_count
"""
_NOTHING: Mapping[Partition, Position] = {}
_RELEASE = """
    UPDATE ingest_progress AS mine SET is_released = true
    FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS held (topic, partition, epoch)
    WHERE mine.topic = held.topic AND mine.partition = held.partition AND mine.epoch = held.epoch
"""

# A batch is stored only from exactly where the partition stands, by its owner. So neither an owner that was
# superseded nor the repetition of a commit whose answer was lost can store anything twice.
_ADVANCE = """
    UPDATE ingest_progress AS mine
    SET next_offset = moved.next_offset, watermark = moved.watermark, first_arrival = moved.first_arrival,
        stored_count = stored_count + moved.stored, refused_count = refused_count + moved.refused, updated_at = now(),
        recent_stored = moved.recent_stored, recent_refused = moved.recent_refused
    FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[],
                $7::timestamptz[], $8::bigint[], $9::bigint[], $10::integer[], $11::integer[])
         AS moved (topic, partition, epoch, from_offset, next_offset, watermark, first_arrival, stored, refused,
                   recent_stored, recent_refused)
    WHERE mine.topic = moved.topic AND mine.partition = moved.partition
      AND mine.epoch = moved.epoch AND mine.next_offset = moved.from_offset
"""

_COUNT_STANDING = """
    SELECT count(*) FROM ingest_progress
    WHERE (topic, partition, epoch, next_offset) IN (
        SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[])
    )
"""

# A process that was frozen in the middle of a COPY is neither idle nor does it end: its session waits for it, and
# whoever stores the same readings or moves the same partition on waits for the session.
_END_ZOMBIES = """
    SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND wait_event = 'ClientRead'
      AND now() - xact_start > $1 AND now() - state_change > $1
      AND pid IN (SELECT pid FROM pg_locks WHERE relation = 'ingest_progress'::regclass
                  AND mode IN ('RowShareLock', 'RowExclusiveLock'))
"""

_STAGING = """
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_reading
        (LIKE reading) ON COMMIT DELETE ROWS
"""

# The newest staged version of each key competes with the stored one; whichever loses goes to reading_superseded: the
# staged losers by this statement, a displaced row by the table's trigger. Sorted, so that writers lock in one order.
_MERGE = f"""
    WITH ranked AS (
        SELECT *, row_number() OVER (PARTITION BY measured_at, meter_id ORDER BY {_NEWEST_FIRST}) AS place
        FROM staged_reading
    ), won AS (
        INSERT INTO reading AS stored ({_COLUMN_LIST})
        SELECT {_COLUMN_LIST} FROM ranked WHERE place = 1 ORDER BY measured_at, meter_id
        ON CONFLICT (measured_at, meter_id) DO UPDATE SET {_ASSIGNMENTS}
        WHERE ({_EXCLUDED_ORDER}) > ({_STORED_ORDER})
        RETURNING measured_at, meter_id
    )
    INSERT INTO reading_superseded ({_COLUMN_LIST})
    SELECT {_COLUMN_LIST} FROM ranked
    WHERE place > 1
       OR NOT EXISTS (SELECT FROM won WHERE won.measured_at = ranked.measured_at AND won.meter_id = ranked.meter_id)
"""  # noqa: S608 - column names of ours


async def at_once() -> None:
    """Be the turn of a batch before which there is none."""


class IngestStore:
    """What ingest reads and writes in PostgreSQL. Every method raises Unavailable while the server is away."""

    def __init__(
        self, pool: Pool, *, zombie_after: timedelta = timedelta(seconds=10), known_days: set[date] | None = None
    ) -> None:
        """`zombie_after`: how long an owner that was superseded may keep a partition locked by an open transaction.

        `known_days`: days whose partitions are there and known to every session, which others add to, too.
        """
        self._pool = pool
        self._zombie_after = zombie_after
        self._begin_writing = _BEGIN_WRITING.format(milliseconds=zombie_after // MILLISECOND)
        self._known_days = set() if known_days is None else known_days

    async def claim(
        self, begins: Mapping[Partition, int], owner: str, held: Mapping[Partition, Position] = _NOTHING
    ) -> dict[Partition, Position]:
        """Become the owner of partitions: whoever owned them before can write no more.

        `begins`: the partitions, each with the offset at which its log begins; there we begin if we never came before.
        `held`: what this very process, which a name does not tell, claimed before.
        Raises Unavailable where a former owner still holds one in a transaction; its session is ended when it has
        been silent in there for long, so trying again helps.
        """
        claimed: dict[Partition, Position] = {}
        try:
            async with transaction(self._pool) as connection:
                milliseconds = self._zombie_after // MILLISECOND
                await connection.execute("SELECT set_config('lock_timeout', $1, true)", f"{milliseconds}ms")
                for (topic, partition), begin in sorted(begins.items()):
                    before = held.get((topic, partition))
                    epoch_before = before.epoch if before else None
                    row = await connection.fetchrow(_CLAIM, topic, partition, owner, epoch_before, begin)
                    assert row is not None  # noqa: S101 - the statement always returns its row
                    epoch, next_offset, watermark, first_arrival, stored, refused, crash_count = row.values()
                    recent = Recent(stored, refused)
                    position = Position(epoch, next_offset, watermark, first_arrival, recent, crash_count)
                    claimed[topic, partition] = position
        except Unavailable:
            await self._end_zombies()
            raise
        return claimed

    async def release(self, positions: Mapping[Partition, Position]) -> None:
        """Let go of partitions: whoever owns them next knows that we did not die of them. Others' stay as they are."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                _RELEASE,
                [topic for topic, _partition in positions],
                [partition for _topic, partition in positions],
                [position.epoch for position in positions.values()],
            )

    async def _end_zombies(self) -> None:
        """End the sessions of writers that have been silent inside a transaction for long."""
        async with transaction(self._pool) as connection:
            ended = await connection.fetchval(_END_ZOMBIES, self._zombie_after)
        if ended:
            log.warning("silent_sessions_ended", sessions=ended)

    async def store(self, batch: Batch, plan: EncodedPlan, turn: Turn = at_once) -> None:
        """Store a batch and move its partitions on, in one transaction.

        `turn` is waited for before anything is read or moved that the batch before this one writes; new rows may be on
        their way before it. What it raises ends the transaction. It may be called again.
        A batch that is stored already, by a commit whose answer was lost, is not stored again.
        Raises Superseded, with nothing written, where another process owns one of the partitions.
        """
        try:
            await self._store_by_any_way(batch, plan, turn)
        except Unavailable as error:
            if isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                await self._end_zombies()
            raise
        except Superseded:
            if not await self._is_stored(batch):
                raise
            log.info("batch_stored_already")

    async def _store_by_any_way(self, batch: Batch, plan: EncodedPlan, turn: Turn) -> None:
        """Store a batch as planned, or by the merge, which is right in any case, where the plan was mistaken."""
        for is_last_try in (False, False, True):
            await self._ensure_days(plan.days)
            try:
                await self._store(batch, plan, turn)
            except asyncpg.UniqueViolationError:
                # A reading that we took for new is stored: by somebody else, or by us, and the answer was lost.
                if is_last_try:
                    raise
                if await self._is_stored(batch):
                    log.info("batch_stored_already")
                    return
                INGEST_MERGED_BATCHES.inc()
            except (UserError, asyncpg.CheckViolationError) as error:
                # A day that was there has been dropped since; a reading for it came after all, and gets one.
                if is_last_try or not _is_a_day_missing(error):
                    raise
                self._known_days -= plan.days
            else:
                return
            plan = await encode_plan(merge_everything(batch.versions))

    async def _is_stored(self, batch: Batch) -> bool:
        """Tell whether we still own the partitions of a batch and they stand where it ends: all of them or none."""
        moves = [(move.topic, move.partition, move.epoch, move.position.next_offset) for move in batch.advances]
        async with transaction(self._pool) as connection:
            found: int = await connection.fetchval(
                _COUNT_STANDING, *(list(column) for column in zip(*moves, strict=True))
            )
        return found == len(moves)

    async def _store(self, batch: Batch, plan: EncodedPlan, turn: Turn) -> None:
        async with transaction(self._pool) as connection:
            await connection.execute(self._begin_writing)
            crash_point("ingest.before_copy")
            for day, pieces in plan.new_by_day:
                await _copy(connection, partition_name("reading", day), pieces)
            if plan.to_merge:
                await connection.execute(_STAGING)
                await _copy(connection, "staged_reading", plan.to_merge)
            await turn()
            await self._advance(connection, batch)
            if plan.to_merge:
                await connection.execute(_MERGE)
            if batch.rejected:
                await connection.copy_records_to_table(
                    "rejected_reading", records=batch.rejected, columns=RejectedRow._fields
                )
            crash_point("ingest.before_commit")

    async def _advance(self, connection: Connection, batch: Batch) -> None:
        moves = sorted(batch.advances)
        status = await connection.execute(
            _ADVANCE,
            [move.topic for move in moves],
            [move.partition for move in moves],
            [move.epoch for move in moves],
            [move.from_offset for move in moves],
            [move.position.next_offset for move in moves],
            [move.position.watermark for move in moves],
            [move.position.first_arrival for move in moves],
            [move.stored for move in moves],
            [move.refused for move in moves],
            [move.position.recent.stored for move in moves],
            [move.position.recent.refused for move in moves],
        )
        if status != f"UPDATE {len(moves)}":
            raise Superseded("another process owns one of the partitions, or the batch is stored already")

    async def _ensure_days(self, days: set[date]) -> None:
        """Make the day partitions that readings need; they stay if the batch fails."""
        missing = sorted(days - self._known_days)
        for first in range(0, len(missing), _DAYS_AT_ONCE):
            some = missing[first : first + _DAYS_AT_ONCE]
            await create_partitions(self._pool, [one for day in some for one in day_partitions(day)])
            self._known_days.update(some)

    async def record_gap(self, gap: GapFound) -> None:
        """Keep a gap in the broker's log for the operator to decide about."""
        async with transaction(self._pool) as connection:
            await record_gap(connection, gap)

    async def topic_refusals(self, topic: str) -> TopicRefusals:
        """Return the recent readings of a topic's partitions, as last stored, and whether refusals are allowed."""
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT partition, recent_stored, recent_refused FROM ingest_progress WHERE topic = $1", topic
            )
            allowed = await allowances_of(connection, [topic])
        return TopicRefusals({(topic, row[0]): Recent(row[1], row[2]) for row in rows}, bool(allowed))

    async def registry_revision(self) -> int:
        """Return the catalog's newest revision."""
        async with transaction(self._pool) as connection:
            revision: int = await connection.fetchval("SELECT revision FROM catalog_revision")
        return revision

    async def registry_change(self, known_revision: int, never_attached: Sequence[str] = ()) -> RegistryChange:
        """Return what the catalog recorded after `known_revision`, and which of `never_attached` it has no more."""
        async with transaction(self._pool) as connection:
            revision: int = await connection.fetchval("SELECT revision FROM catalog_revision")
            span = (known_revision, revision)
            devices = await connection.fetch(
                "SELECT device_id FROM device WHERE revision > $1 AND revision <= $2", *span
            )
            meters = await connection.fetch("SELECT meter_id FROM meter WHERE revision > $1 AND revision <= $2", *span)
            inputs = await connection.fetch(
                "SELECT device_id, input, greatest(valid_from, $3), revision, meter_id FROM input_attachment "
                "WHERE revision > $1 AND revision <= $2",
                *span,
                _EARLIEST,
            )
            links = await connection.fetch(
                "SELECT device_id, meter_id, greatest(valid_from, $3), revision, attached FROM bridge_attachment "
                "WHERE revision > $1 AND revision <= $2",
                *span,
                _EARLIEST,
            )
            # Last: what was attached by now stays for ever, and a device that was made anew is there.
            removed = await connection.fetch(
                "SELECT unnest($1::text[]) AS device_id EXCEPT SELECT device_id FROM device WHERE device_id = ANY ($1)",
                never_attached,
            )
        return RegistryChange(
            revision,
            [row[0] for row in devices],
            [row[0] for row in meters],
            [InputAttachmentRow(*row) for row in inputs],
            [BridgeAttachmentRow(*row) for row in links],
            [row[0] for row in removed],
        )


# Stands for -infinity in Python, whose earliest aware instant cannot be shifted between zones.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)


def _is_a_day_missing(error: UserError | asyncpg.CheckViolationError) -> bool:
    return not isinstance(error, UserError) or isinstance(error.__cause__, asyncpg.UndefinedTableError)


async def _copy(connection: Connection, table: str, pieces: list[bytes]) -> None:
    await connection.copy_to_table(table, source=_each(pieces), columns=COLUMN_NAMES, format="binary")


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
