"""The worker's tables: claims with a lease and an epoch, where an export stands, its chunks, its end."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg

from services.core.manual_export import MAX_AT_ONCE, ExportFormat, WantedExport, plan_chunks
from services.exports.model import Chunk, Claim, Export, File, Key
from services.platform.errors import Superseded
from services.platform.postgres import Connection, Pool, transaction

APPLICATION_NAME = "meterpost exports"
"""What our connections are called while they compute."""
# Claims are made one after the other, so that a user's running exports can be counted.
_CLAIM_LOCK = 0x6D70_6578
_NEXT = f"""
WITH running AS (
    SELECT organization_id, requested_by, count(*) AS exports
    FROM manual_export_progress JOIN manual_export USING (organization_id, export_id)
    WHERE state = 'running'
    GROUP BY organization_id, requested_by
)
SELECT organization_id, export_id, epoch IS NULL AS is_new
FROM manual_export LEFT JOIN manual_export_progress USING (organization_id, export_id)
     LEFT JOIN running USING (organization_id, requested_by)
WHERE (epoch IS NULL AND cancelled_at IS NULL AND coalesce(running.exports, 0) < {MAX_AT_ONCE})
   OR (state = 'running' AND next_attempt_at <= $1)
ORDER BY coalesce(next_attempt_at, requested_at), export_id
LIMIT 20
"""  # noqa: S608 - a number of ours
_TAKE = """
UPDATE manual_export_progress
SET epoch = epoch + 1, lease_owner = $3, next_attempt_at = $4
WHERE (organization_id, export_id) IN (
    SELECT organization_id, export_id FROM manual_export_progress
    WHERE organization_id = $1 AND export_id = $2 AND state = 'running' AND next_attempt_at <= $5
    FOR UPDATE SKIP LOCKED)
RETURNING epoch
"""
# The meters that ever stood at the sites; which of their windows did, the rows themselves tell.
_METERS = """
SELECT coalesce(array_agg(meter_id ORDER BY meter_id), '{}'), coalesce(min(cadence), 1),
       (SELECT count(*) FROM meter)
FROM (
    SELECT meter_id, min(cadence_minutes) AS cadence
    FROM meter JOIN meter_configuration c USING (meter_id)
    WHERE organization_id = $1 AND c.revision <= $2 AND ($3::int[] IS NULL OR meter_id = ANY ($3))
      AND ($4::int[] IS NULL OR site_id = ANY ($4))
    GROUP BY meter_id
) AS chosen
"""
_BEGIN = """
INSERT INTO manual_export_progress (organization_id, export_id, state, next_attempt_at, lease_owner, epoch, meter_ids,
                                    is_selective, chunk_minutes, position, started_at)
VALUES ($1, $2, 'running', $3, $4, 1, $5, $6, $7, $8, $9)
"""
_LOAD = """
SELECT range_start, range_end, resolution_minutes, format, site_ids, e.meter_ids AS chosen_meters, known_at,
       catalog_revision, p.meter_ids, is_selective, chunk_minutes, position, row_count, cancelled_at IS NOT NULL,
       (SELECT coalesce(min(cadence_minutes), 1)
        FROM meter_configuration c JOIN unnest(p.meter_ids) AS exported (meter_id) USING (meter_id)
        WHERE c.revision <= catalog_revision)
FROM manual_export e JOIN manual_export_progress p USING (organization_id, export_id)
WHERE organization_id = $1 AND export_id = $2 AND epoch = $3 AND state = 'running'
"""
_OURS = "organization_id = $1 AND export_id = $2 AND epoch = $3 AND state = 'running'"
_ADVANCE = f"""
UPDATE manual_export_progress
SET position = $4, row_count = row_count + $5, next_attempt_at = $6, failed_in_a_row = 0, problem_code = NULL,
    problem = NULL
WHERE {_OURS}
"""  # noqa: S608 - a constant
_START_AGAIN = f"""
UPDATE manual_export_progress
SET row_count = 0, position = (SELECT range_start FROM manual_export WHERE organization_id = $1 AND export_id = $2)
WHERE {_OURS}
"""  # noqa: S608 - a constant


class ExportStore:
    """Reads and writes the worker's tables. Raises Unavailable while PostgreSQL is away."""

    def __init__(self, pool: Pool, owner: str, lease: timedelta) -> None:
        self._pool = pool
        self._owner = owner
        self._lease = lease

    async def claim(self, now: datetime) -> Claim | None:
        """Claim the export whose turn it is, and begin it where it is new; None: there is nothing to do."""
        async with transaction(self._pool) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
            for row in await connection.fetch(_NEXT, now):
                key = Key(row["organization_id"], row["export_id"])
                if row["is_new"]:
                    await self._begin(connection, key, now)
                    return Claim(key, 1)
                epoch = await connection.fetchval(_TAKE, *key, self._owner, now + self._lease, now)
                if epoch is not None:
                    return Claim(key, epoch)
        return None

    async def _begin(self, connection: Connection, key: Key, now: datetime) -> None:
        row = await connection.fetchrow(
            "SELECT range_start, resolution_minutes, catalog_revision, meter_ids, site_ids FROM manual_export "
            "WHERE organization_id = $1 AND export_id = $2",
            *key,
        )
        assert row is not None  # noqa: S101 - found a moment ago, and never removed
        chosen = await connection.fetchrow(
            _METERS, key.organization_id, row["catalog_revision"], row["meter_ids"], row["site_ids"]
        )
        assert chosen is not None  # noqa: S101 - an aggregate always has a row
        meter_ids, cadence, all_meters = chosen
        plan = plan_chunks(row["resolution_minutes"], cadence, len(meter_ids), all_meters)
        await connection.execute(
            _BEGIN,
            *key,
            now + self._lease,
            self._owner,
            meter_ids,
            plan.is_selective,
            plan.chunk_minutes,
            row["range_start"],
            now,
        )

    async def load(self, claim: Claim) -> Export:
        """Return the export as it stands. Raises Superseded where it is no longer ours."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_LOAD, *claim.key, claim.epoch)
        if row is None:
            raise Superseded("somebody else works on the export")
        start, end, resolution, name, sites, meters, known_at, revision, *rest = row
        wanted = WantedExport(start, end, resolution, ExportFormat(name), sites, meters, known_at)
        return Export(claim.key, wanted, revision, *rest)

    async def own(self, connection: Connection, claim: Claim) -> bool:
        """Make sure that the export is ours to the transaction's end; return whether it was cancelled.

        Raises Superseded.
        """
        row = await connection.fetchrow(
            f"SELECT 1 FROM manual_export_progress WHERE {_OURS} FOR UPDATE",  # noqa: S608 - a constant
            *claim.key,
            claim.epoch,
        )
        if row is None:
            raise Superseded("somebody else works on the export")
        cancelled: bool = await connection.fetchval(
            "SELECT cancelled_at IS NOT NULL FROM manual_export WHERE organization_id = $1 AND export_id = $2",
            *claim.key,
        )
        return cancelled

    async def advance(
        self, connection: Connection, claim: Claim, position: datetime, made: Sequence[Chunk], now: datetime
    ) -> None:
        """Record chunks, those of stretches that have rows, and where the next one begins; renew the lease."""
        await connection.executemany(
            "INSERT INTO manual_export_chunk (organization_id, export_id, chunk, epoch, row_count, byte_count, sha256) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [(*claim.key, *chunk) for chunk in made],
        )
        row_count = sum(chunk.row_count for chunk in made)
        await connection.execute(_ADVANCE, *claim.key, claim.epoch, position, row_count, now + self._lease)

    async def chunks(self, claim: Claim) -> Sequence[Chunk]:
        """Return the chunks in their order."""
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT chunk, epoch, row_count, byte_count, sha256 FROM manual_export_chunk "
                "WHERE organization_id = $1 AND export_id = $2 ORDER BY chunk",
                *claim.key,
            )
        return [Chunk(*row) for row in rows]

    async def start_again(self, claim: Claim) -> None:
        """Forget the chunks: the store lost one, or changed it. Raises Superseded."""
        async with transaction(self._pool) as connection:
            await self.own(connection, claim)
            await _forget_chunks(connection, claim.key)
            await connection.execute(
                _START_AGAIN,
                *claim.key,
                claim.epoch,
            )

    async def renew(self, claim: Claim, now: datetime) -> None:
        """Hold on to the export. Raises Superseded."""
        await self._update(claim, "next_attempt_at = $4", now + self._lease)

    async def release(self, claim: Claim, again_at: datetime) -> None:
        """Let others have a turn."""
        await self._update(claim, "next_attempt_at = $4", again_at)

    async def wait(self, claim: Claim, again_at: datetime, code: str, problem: str) -> int:
        """Say why it has to wait, and until when; return how often in a row it had to."""
        count: int = await self._update(
            claim,
            "next_attempt_at = $4, failed_in_a_row = failed_in_a_row + 1, problem_code = $5, problem = $6",
            again_at,
            code,
            problem,
        )
        return count

    async def finish(self, claim: Claim, file: File, now: datetime, expires_at: datetime) -> None:
        """Say that the file is complete."""
        await self._update(
            claim,
            "state = 'done', next_attempt_at = NULL, object_key = $4, byte_count = $5, sha256 = $6, finished_at = $7, "
            "expires_at = $8, problem_code = NULL, problem = NULL",
            *file,
            now,
            expires_at,
        )

    async def end(
        self, claim: Claim, state: str, now: datetime, code: str | None = None, why: str | None = None
    ) -> None:
        """Say that there will be no file: cancelled or failed."""
        await self._update(
            claim,
            "state = $4, next_attempt_at = NULL, finished_at = $5, expires_at = $5, problem_code = $6, problem = $7",
            state,
            now,
            code,
            why,
        )

    async def _update(self, claim: Claim, change: str, *values: object) -> int:
        async with transaction(self._pool) as connection:
            count: int | None = await connection.fetchval(
                f"UPDATE manual_export_progress SET {change} WHERE {_OURS} RETURNING failed_in_a_row",  # noqa: S608 - as above
                *claim.key,
                claim.epoch,
                *values,
            )
        if count is None:
            raise Superseded("somebody else works on the export")
        return count

    async def with_leftovers(self) -> list[tuple[Key, str | None]]:
        """Return the exports that are over and of which chunks are left, with the name of their finished file."""
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT organization_id, export_id, object_key FROM manual_export_chunk "
                "JOIN manual_export_progress USING (organization_id, export_id) WHERE state <> 'running' LIMIT 100"
            )
        return [(Key(row["organization_id"], row["export_id"]), row["object_key"]) for row in rows]

    async def forget_chunks(self, key: Key) -> None:
        """Note that no chunk is left in the store."""
        async with transaction(self._pool) as connection:
            await _forget_chunks(connection, key)

    async def expired(self, now: datetime) -> list[Key]:
        """Return the exports whose files are to be removed."""
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT organization_id, export_id FROM manual_export_progress WHERE expires_at <= $1 LIMIT 100", now
            )
        return [Key(*row) for row in rows]

    async def removed(self, key: Key) -> None:
        """Note that nothing of the export is left in the store."""
        async with transaction(self._pool) as connection:
            await _forget_chunks(connection, key)
            await connection.execute(
                "UPDATE manual_export_progress SET expires_at = NULL, "
                "state = CASE state WHEN 'done' THEN 'expired' ELSE state END "
                "WHERE organization_id = $1 AND export_id = $2",
                *key,
            )

    async def others_are_busy(self) -> bool:
        """Tell whether somebody else uses the database at this moment, as far as we may see."""
        async with transaction(self._pool) as connection:
            found: bool = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> $1)",
                APPLICATION_NAME,
            )
        return found


async def _forget_chunks(connection: "Connection | asyncpg.Connection[asyncpg.Record]", key: Key) -> None:
    for table in ("manual_export_chunk", "manual_export_register"):
        await connection.execute(f"DELETE FROM {table} WHERE organization_id = $1 AND export_id = $2", *key)  # noqa: S608 - names of ours
