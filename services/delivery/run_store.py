"""The SQL of runs, parts and attempts. Every write holds the job under the claim's epoch first."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg

from services.core.retry import Answer, Verdict
from services.core.schedule import Slot
from services.delivery.job_store import hold, stop_held
from services.delivery.model import Claim, FrozenPart, RowRange, Run, WaitingPart
from services.delivery.planning import Plan
from services.platform.postgres import Connection, Pool, transaction

_PLAN_RUNS = """
INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state,
                        frozen_at, finished_at, is_forced)
SELECT $1, $2, r.slot_start, r.slot_end, r.job_version, c.revision,
       r.state, CASE WHEN r.state = 'empty' THEN $7::timestamptz END,
       CASE WHEN r.state <> 'planned' THEN $7::timestamptz END,
       EXISTS (SELECT FROM window_forced f
               WHERE f.resolution_minutes = v.resolution_minutes
                 AND f.from_start < r.slot_end AND f.until_start > r.slot_start)
FROM catalog_revision c,
     unnest($3::timestamptz[], $4::timestamptz[], $5::integer[], $6::text[])
         AS r (slot_start, slot_end, job_version, state)
JOIN export_job_version v ON v.organization_id = $1 AND v.job_id = $2 AND v.version = r.job_version
"""

_MOVE_ON = """
UPDATE export_job_progress
SET next_slot_start = $3, next_slot_end = $4, next_resolution_minutes = $5, seen_version = $6
WHERE organization_id = $1 AND job_id = $2
"""

_NEXT_RUN = """
SELECT r.slot_start, r.slot_end, r.job_version, r.catalog_revision, r.state = 'frozen' AS is_frozen, r.part_count,
       j.deleted_at IS NOT NULL AS is_deleted
FROM export_run r JOIN export_job j USING (job_id)
WHERE r.organization_id = $1 AND r.job_id = $2 AND r.state IN ('planned', 'frozen')
ORDER BY r.slot_start LIMIT 1
"""

_ADD_PART = """
INSERT INTO export_part (organization_id, job_id, slot_start, part, first_measured_at, first_meter_id, row_count,
                         byte_count, sha256)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

_FREEZE = """
UPDATE export_run
SET state = $4, part_count = $5, row_count = $6, byte_count = $7, frozen_at = $8,
    finished_at = CASE WHEN $4 = 'empty' THEN $8::timestamptz END
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3
"""

# Beside the rows themselves: what the run should have held, as known at the catalog revision that it pins.
_COUNT_INTERVALS = """
UPDATE export_run r
SET intervals_present = c.present, intervals_expected = c.expected, silent_meter_count = c.silent
FROM (
    SELECT coalesce(sum(f.intervals_present), 0)::bigint AS present,
           coalesce(sum(f.intervals_expected), 0)::bigint AS expected,
           count(*) FILTER (WHERE f.windows_present = 0) AS silent
    FROM export_run of_run
    JOIN export_job_version v ON v.organization_id = of_run.organization_id AND v.job_id = of_run.job_id
                             AND v.version = of_run.job_version
    CROSS JOIN LATERAL completeness($1, v.resolution_minutes, of_run.slot_start, of_run.slot_end,
                                    of_run.catalog_revision, v.site_ids) f
    WHERE of_run.organization_id = $1 AND of_run.job_id = $2 AND of_run.slot_start = $3
) c
WHERE r.organization_id = $1 AND r.job_id = $2 AND r.slot_start = $3
"""

_NEXT_PART = """
SELECT part, first_measured_at, first_meter_id, row_count, byte_count, sha256, attempt_count, next_attempt_at
FROM export_part WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 AND state = 'waiting'
ORDER BY part LIMIT 1
"""

# A conflict is our own repetition: the commit had succeeded, only its acknowledgement was lost.
_ADD_ATTEMPT = """
INSERT INTO delivery_attempt (organization_id, job_id, slot_start, part, attempt, started_at, finished_at, outcome,
                              reason, detail)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT DO NOTHING
"""

_PART_DELIVERED = """
UPDATE export_part SET state = 'delivered', attempt_count = $5, next_attempt_at = NULL, delivered_at = $6
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 AND part = $4
"""

_PART_WAITS = """
UPDATE export_part SET attempt_count = $5, next_attempt_at = $6
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 AND part = $4
"""

_RUN_DELIVERED = """
UPDATE export_run r SET state = 'delivered', finished_at = $4
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3
  AND NOT EXISTS (SELECT FROM export_part p
                  WHERE p.organization_id = $1 AND p.job_id = $2 AND p.slot_start = $3 AND p.state <> 'delivered')
RETURNING true
"""


class Attempt(NamedTuple):
    """One attempt and what follows from it; `next_attempt_at` is None unless it is made again by itself."""

    started_at: datetime
    finished_at: datetime
    answer: Answer
    next_attempt_at: datetime | None


class RunStore:
    """Runs and their parts. Every method raises Unavailable while PostgreSQL is away, every write Superseded."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def installation_id(self) -> str:
        """Return what tells this installation's parts from those of any other."""
        async with transaction(self._pool) as connection:
            found: str = await connection.fetchval("SELECT installation_id FROM installation")
        return found

    async def add(self, claim: Claim, plan: Plan, seen_version: int, now: datetime) -> None:
        """Add the planned runs, which pin the newest catalog revision, and move the job on to its next slot."""
        runs = plan.runs
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            if runs:
                await connection.execute(
                    _PLAN_RUNS,
                    *claim.job,
                    [run.slot.start for run in runs],
                    [run.slot.end for run in runs],
                    [run.version for run in runs],
                    [run.state for run in runs],
                    now,
                )
            resolution_minutes = plan.next_version.resolution_minutes
            await connection.execute(_MOVE_ON, *claim.job, *plan.next_slot, resolution_minutes, seen_version)

    async def next_unfinished(self, claim: Claim) -> Run | None:
        """Return the oldest run that is not finished; None where there is none, or the job was deleted."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_NEXT_RUN, *claim.job)
        if row is None or row["is_deleted"]:
            return None
        slot = Slot(row["slot_start"], row["slot_end"])
        return Run(claim.job, slot, row["job_version"], row["catalog_revision"], row["is_frozen"], row["part_count"])

    async def freeze(self, claim: Claim, run: Run, parts: Sequence[FrozenPart], now: datetime) -> None:
        """Fix the run's parts; without any it is empty, and over."""
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            await connection.executemany(
                _ADD_PART,
                [
                    (*run.job, run.slot.start, number, *part.rows, part.byte_count, part.sha256)
                    for number, part in enumerate(parts, start=1)
                ],
            )
            await connection.execute(
                _FREEZE,
                *run.job,
                run.slot.start,
                "frozen" if parts else "empty",
                len(parts),
                sum(part.rows.row_count for part in parts),
                sum(part.byte_count for part in parts),
                now,
            )
            await connection.execute(_COUNT_INTERVALS, *run.job, run.slot.start)

    async def next_part(self, run: Run) -> WaitingPart | None:
        """Return the first part of the run that has not been delivered."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_NEXT_PART, *run.job, run.slot.start)
        return None if row is None else _part_from_row(row)

    async def record(self, claim: Claim, run: Run, part: WaitingPart, attempt: Attempt) -> bool:
        """Record an attempt and its consequences; return whether the whole run is delivered now. Safe to repeat."""
        key = (*run.job, run.slot.start, part.number)
        number = part.attempt_count + 1
        answer = attempt.answer
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            times = (attempt.started_at, attempt.finished_at)
            await connection.execute(
                _ADD_ATTEMPT, *key, number, *times, answer.verdict.value, answer.reason, answer.detail
            )
            if answer.verdict is Verdict.DELIVERED:
                await connection.execute(_PART_DELIVERED, *key, number, attempt.finished_at)
                return await self._finish(connection, run, attempt.finished_at)
            await connection.execute(_PART_WAITS, *key, number, attempt.next_attempt_at)
            if answer.verdict is Verdict.STOP:
                await stop_held(connection, run.job, attempt.finished_at, answer.reason, answer.detail)
            return False

    async def _finish(self, connection: Connection, run: Run, at: datetime) -> bool:
        return await connection.fetchval(_RUN_DELIVERED, *run.job, run.slot.start, at) is not None


def _part_from_row(row: asyncpg.Record) -> WaitingPart:
    rows = RowRange(row["first_measured_at"], row["first_meter_id"], row["row_count"])
    frozen = FrozenPart(rows, row["byte_count"], row["sha256"])
    return WaitingPart(row["part"], frozen, row["attempt_count"], row["next_attempt_at"])
