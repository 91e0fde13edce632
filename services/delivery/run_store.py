"""The SQL of runs, parts and attempts. Every write holds the job under the claim's epoch first."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import asyncpg
import msgspec

from services.core.parts import run_id
from services.core.retry import Answer, Verdict
from services.core.schedule import Slot
from services.delivery.health_store import hold, stop_held, store_consequence
from services.delivery.interval_counts import Intervals
from services.delivery.job_health import FAILED_RUNS, HealthRules, JobHealth, News, after_failure, after_success
from services.delivery.model import Claim, FrozenPart, JobKey, Manifest, RowRange, Run, WaitingPart
from services.delivery.notices import Occasion
from services.delivery.planning import Plan, PlannedRun
from services.platform.crash_points import crash_point
from services.platform.postgres import Connection, Pool, transaction

ROWS_DROPPED = "rows_dropped"
"""Why a run failed whose rows retention has dropped: no fault of the receiver, and the job's next run has its turn."""

_PLAN_RUNS = """
INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state,
                        planned_at, frozen_at, finished_at, is_forced)
SELECT $1, $2, r.slot_start, r.slot_end, r.job_version, c.revision,
       r.state, $7, CASE WHEN r.state = 'empty' THEN $7::timestamptz END,
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
       r.planned_at, r.row_count, r.resend_count, j.deleted_at IS NOT NULL AS is_deleted
FROM export_run r JOIN export_job j USING (job_id)
WHERE r.organization_id = $1 AND r.job_id = $2 AND r.state IN ('planned', 'frozen')
ORDER BY r.slot_start LIMIT 1
"""

_ADD_PART = """
INSERT INTO export_part (organization_id, job_id, slot_start, part, first_measured_at, first_meter_id, row_count,
                         first_record, byte_count, sha256, is_manifest)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""

_ADD_MANIFEST = """
INSERT INTO export_manifest (organization_id, job_id, slot_start, section, number, body, sha256)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""

_LAST_MANIFEST = """
SELECT slot_start, number, sha256 FROM export_manifest WHERE organization_id = $1 AND job_id = $2
ORDER BY number DESC LIMIT 1
"""

_FREEZE = """
UPDATE export_run
SET state = $4, part_count = $5, row_count = $6, byte_count = $7, frozen_at = $8,
    intervals_present = $9, intervals_expected = $10, silent_meter_count = $11,
    finished_at = CASE WHEN $4 = 'empty' THEN $8::timestamptz END
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3
"""

_NEXT_PART = """
SELECT p.part, p.first_measured_at, p.first_meter_id, p.row_count, p.first_record, p.byte_count, p.sha256,
       p.attempt_count, p.next_attempt_at, p.failed_in_a_row,
       CASE WHEN p.is_manifest THEN (SELECT m.body FROM export_manifest m WHERE m.organization_id = p.organization_id
                                     AND m.job_id = p.job_id AND m.slot_start = p.slot_start
                                     AND m.section = p.part - $4) END AS manifest_body
FROM export_part p WHERE p.organization_id = $1 AND p.job_id = $2 AND p.slot_start = $3 AND p.state = 'waiting'
ORDER BY p.part LIMIT 1
"""

# A conflict is our own repetition: the commit had succeeded, only its acknowledgement was lost.
_ADD_ATTEMPT = """
INSERT INTO delivery_attempt (organization_id, job_id, slot_start, part, attempt, started_at, finished_at, outcome,
                              reason, detail)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT DO NOTHING
RETURNING true
"""

_PART_DELIVERED = """
UPDATE export_part
SET state = 'delivered', attempt_count = $5, failed_in_a_row = 0, next_attempt_at = NULL, delivered_at = $6
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 AND part = $4
"""

_PART_WAITS = """
UPDATE export_part SET attempt_count = $5, failed_in_a_row = failed_in_a_row + 1, next_attempt_at = $6
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 AND part = $4
"""

_RUN_DELIVERED = """
UPDATE export_run r SET state = 'delivered', finished_at = $4
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3
  AND NOT EXISTS (SELECT FROM export_part p
                  WHERE p.organization_id = $1 AND p.job_id = $2 AND p.slot_start = $3 AND p.state <> 'delivered')
RETURNING true
"""


_RUN_FAILED = """
UPDATE export_run SET state = 'failed', finished_at = $4
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3
"""

_RUN_STATE = "SELECT state FROM export_run WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3"


class Recorded(StrEnum):
    """What an attempt led to."""

    GOES_ON = "goes_on"
    RUN_DELIVERED = "run_delivered"
    RUN_FAILED = "run_failed"
    JOB_STOPPED = "job_stopped"


class LastManifest(NamedTuple):
    """The newest manifest of a job: the next one names its hash."""

    slot_start: datetime
    number: int
    sha256: bytes


class Attempt(NamedTuple):
    """One attempt and what follows from it; `next_attempt_at` is None unless it is made again by itself."""

    started_at: datetime
    finished_at: datetime
    answer: Answer
    next_attempt_at: datetime | None


async def plan_runs(connection: Connection, job: JobKey, runs: Sequence[PlannedRun], now: datetime) -> None:
    """Add runs of a job that the transaction holds; they pin the newest catalog revision."""
    if runs:
        await connection.execute(
            _PLAN_RUNS,
            *job,
            [run.slot.start for run in runs],
            [run.slot.end for run in runs],
            [run.version for run in runs],
            [run.state for run in runs],
            now,
        )


async def move_on(connection: Connection, job: JobKey, plan: Plan, seen_version: int) -> None:
    """Move a job that the transaction holds on to its next slot."""
    resolution_minutes = plan.next_version.resolution_minutes
    await connection.execute(_MOVE_ON, *job, *plan.next_slot, resolution_minutes, seen_version)


class RunStore:
    """Runs and their parts. Every method raises Unavailable while PostgreSQL is away, every write Superseded."""

    def __init__(self, pool: Pool, rules: HealthRules | None = None) -> None:
        self._pool = pool
        self._rules = rules or HealthRules()

    async def installation_id(self) -> str:
        """Return what tells this installation's parts from those of any other."""
        async with transaction(self._pool) as connection:
            found: str = await connection.fetchval("SELECT installation_id FROM installation")
        return found

    async def add(self, claim: Claim, plan: Plan, seen_version: int, now: datetime) -> None:
        """Add the planned runs, which pin the newest catalog revision, and move the job on to its next slot."""
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            await plan_runs(connection, claim.job, plan.runs, now)
            await move_on(connection, claim.job, plan, seen_version)

    async def next_unfinished(self, claim: Claim) -> tuple[Run, WaitingPart | None] | None:
        """Return the oldest run that is not finished, and the first of its parts that has not been delivered.

        No part: the run is not frozen. None: there is no such run, or the job was deleted.
        """
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_NEXT_RUN, *claim.job)
            if row is None or row["is_deleted"]:
                return None
            run = _run_from_row(claim.job, row)
            part = None
            if run.is_frozen:
                part = await connection.fetchrow(_NEXT_PART, *run.job, run.slot.start, run.part_count)
        return run, None if part is None else _part_from_row(part)

    async def last_manifest(self, run: Run) -> LastManifest | None:
        """Return the newest link of the chain of the job's manifests."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_LAST_MANIFEST, *run.job)
        return None if row is None else LastManifest(*row)

    async def freeze(
        self,
        claim: Claim,
        run: Run,
        parts: Sequence[FrozenPart],
        intervals: Intervals | None,
        now: datetime,
        manifests: Sequence[Manifest] = (),
    ) -> None:
        """Fix the run's parts and its manifests; without any part it is empty, and over."""
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            await connection.executemany(
                _ADD_PART,
                [
                    (*run.job, run.slot.start, number, *part.rows, part.byte_count, part.sha256, False)
                    for number, part in enumerate(parts, start=1)
                ],
            )
            for section, manifest in enumerate(manifests, start=1):
                await connection.execute(_ADD_MANIFEST, *run.job, run.slot.start, section, *manifest)
                place = (*run.job, run.slot.start, len(parts) + section, *RowRange(run.slot.start, 0, 0))
                await connection.execute(_ADD_PART, *place, len(manifest.body), manifest.sha256, True)
            await connection.execute(
                _FREEZE,
                *run.job,
                run.slot.start,
                "frozen" if parts else "empty",
                len(parts),
                sum(part.rows.row_count for part in parts),
                sum(part.byte_count for part in parts),
                now,
                *(intervals or (None, None, None)),
            )

    async def record(self, claim: Claim, run: Run, part: WaitingPart, attempt: Attempt) -> Recorded:
        """Record an attempt and its consequences; return what it led to. Safe to repeat."""
        key = (*run.job, run.slot.start, part.number)
        number = part.attempt_count + 1
        answer = attempt.answer
        async with transaction(self._pool) as connection:
            health = await hold(connection, claim)
            times = (attempt.started_at, attempt.finished_at)
            is_new = await connection.fetchval(
                _ADD_ATTEMPT, *key, number, *times, answer.verdict.value, answer.reason, answer.detail
            )
            if not is_new:
                return await self._recorded_before(connection, run, answer)
            if answer.verdict is Verdict.DELIVERED:
                await connection.execute(_PART_DELIVERED, *key, number, attempt.finished_at)
            else:
                await connection.execute(_PART_WAITS, *key, number, attempt.next_attempt_at)
            recorded = await self._follow(connection, run, health, attempt)
            crash_point("delivery.before_commit")
        return recorded

    async def _follow(self, connection: Connection, run: Run, health: JobHealth, attempt: Attempt) -> Recorded:
        """Store what the attempt means for its run and its job."""
        key, at, answer = (*run.job, run.slot.start), attempt.finished_at, attempt.answer
        if answer.reason == ROWS_DROPPED:
            await connection.execute(_RUN_FAILED, *key, at)
            return Recorded.RUN_FAILED
        if answer.verdict is Verdict.STOP:
            occasion = _occasion("paused", run, health, attempt)
            await stop_held(connection, run.job, health, occasion, self._rules)
            return Recorded.JOB_STOPPED
        if answer.verdict is Verdict.DELIVERED:
            is_delivered = await connection.fetchval(_RUN_DELIVERED, *key, at) is not None
            consequence = after_success(health, is_run_delivered=is_delivered)
            if consequence.health != health:
                occasion = _occasion("recovered", run, health, attempt)
                await store_consequence(connection, run.job, consequence, occasion, self._rules)
            return Recorded.RUN_DELIVERED if is_delivered else Recorded.GOES_ON
        consequence = after_failure(health, run.planned_at, at, self._rules)
        if consequence.is_run_failed:
            await connection.execute(_RUN_FAILED, *key, at)
        occasion = _occasion(consequence.news or "failing", run, consequence.health, attempt)
        if consequence.is_job_paused:
            occasion = msgspec.structs.replace(occasion, reason=FAILED_RUNS, detail=self._why_paused(answer))
            await stop_held(connection, run.job, consequence.health._replace(told=health.told), occasion, self._rules)
            return Recorded.JOB_STOPPED
        if consequence.health != health:
            await store_consequence(connection, run.job, consequence, occasion, self._rules)
        return Recorded.RUN_FAILED if consequence.is_run_failed else Recorded.GOES_ON

    def _why_paused(self, answer: Answer) -> str:
        return (
            f"{self._rules.failed_runs} runs in a row failed, the last one with {answer.reason}: {answer.detail}; mend "
            "that, then recover the job"
        )

    @staticmethod
    async def _recorded_before(connection: Connection, run: Run, answer: Answer) -> Recorded:
        """Return what our own repetition led to: the first commit had succeeded, its acknowledgement was lost."""
        if answer.verdict is Verdict.STOP and answer.reason != ROWS_DROPPED:
            return Recorded.JOB_STOPPED
        state = await connection.fetchval(_RUN_STATE, *run.job, run.slot.start)
        known = {"delivered": Recorded.RUN_DELIVERED, "failed": Recorded.RUN_FAILED, "given_up": Recorded.RUN_FAILED}
        return known.get(state, Recorded.GOES_ON)


def _occasion(news: News, run: Run, health: JobHealth, attempt: Attempt) -> Occasion:
    since = health.failing_since or (None if news == "recovered" else attempt.finished_at)
    answer = attempt.answer
    name = run_id(run.job.job_id, run.slot.start)
    return Occasion(news, attempt.finished_at, answer.reason, answer.detail, since, name, run.slot)


def _run_from_row(job: JobKey, row: asyncpg.Record) -> Run:
    return Run(
        job,
        Slot(row["slot_start"], row["slot_end"]),
        row["job_version"],
        row["catalog_revision"],
        row["is_frozen"],
        row["part_count"],
        row["planned_at"],
        row["row_count"],
        row["resend_count"],
    )


def _part_from_row(row: asyncpg.Record) -> WaitingPart:
    rows = RowRange(row["first_measured_at"], row["first_meter_id"], row["row_count"], row["first_record"])
    frozen = FrozenPart(rows, row["byte_count"], row["sha256"])
    return WaitingPart(
        row["part"],
        frozen,
        row["attempt_count"],
        row["next_attempt_at"],
        row["failed_in_a_row"],
        row["manifest_body"],
    )
