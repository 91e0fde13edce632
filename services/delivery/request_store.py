"""The SQL of requests: runs that are sent again, tried again or added. Every write holds the job's epoch first."""

from collections.abc import Mapping
from datetime import datetime

from services.core.plurals import counted
from services.core.schedule import Slot
from services.delivery.backfill import Filling
from services.delivery.health_store import hold
from services.delivery.job_health import after_resume
from services.delivery.model import Claim, Request
from services.delivery.planning import Plan
from services.delivery.run_store import move_on, plan_runs
from services.platform.kept_rows import dropped_of_run, need_rows
from services.platform.postgres import Connection, Pool, transaction

# A run that was given up is tried again where it is named, and no other way.
_RETRY_RUNS = """
UPDATE export_run r SET state = 'frozen', finished_at = NULL
WHERE organization_id = $1 AND job_id = $2 AND ($3::timestamptz IS NULL OR slot_start = $3)
  AND (state = 'failed' OR state = 'given_up' AND slot_start = $3)
  AND NOT EXISTS (SELECT FROM export_job_version v JOIN measurement_retention k USING (resolution_minutes)
                  WHERE v.organization_id = $1 AND v.job_id = $2 AND v.version = r.job_version
                    AND v.data = 'meters_measurements' AND r.slot_start < k.dropped_until)
"""

# Whoever gave the run up after asking for it to be tried again has the last word.
_GIVEN_UP_SINCE = """
SELECT EXISTS (
    SELECT FROM export_run r JOIN export_request q USING (organization_id, job_id)
    WHERE r.organization_id = $1 AND r.job_id = $2 AND r.slot_start = $3 AND r.state = 'given_up'
      AND q.kind = 'give_up' AND q.request_id > $4 AND (q.slot_start = r.slot_start OR r.slot_end <= q.range_end))
"""

_NOT_RETRIED = """
SELECT count(*) FROM export_run
WHERE organization_id = $1 AND job_id = $2 AND ($3::timestamptz IS NULL OR slot_start = $3)
  AND (state = 'failed' OR state = 'given_up' AND slot_start = $3)
"""

_RETRY_PARTS = """
UPDATE export_part p SET next_attempt_at = NULL, failed_in_a_row = 0
FROM export_run r
WHERE r.organization_id = $1 AND r.job_id = $2 AND r.state = 'frozen' AND ($3::timestamptz IS NULL OR r.slot_start = $3)
  AND p.organization_id = $1 AND p.job_id = $2 AND p.slot_start = r.slot_start AND p.state = 'waiting'
"""

_RESEND_RUN = """
UPDATE export_run SET state = 'frozen', finished_at = NULL, resend_count = resend_count + 1
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 AND state = 'delivered'
"""

_RESEND_PARTS = """
UPDATE export_part SET state = 'waiting', next_attempt_at = NULL, failed_in_a_row = 0
WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3
"""

_TAKEN = """
SELECT slot_start, slot_end FROM export_run
WHERE organization_id = $1 AND job_id = $2 AND slot_end > $3 AND slot_start < $4
ORDER BY slot_start
"""

# Slots of a pause that lie in the range as a whole and whose rows are kept.
_UNSKIP = """
UPDATE export_run r
SET state = 'planned', finished_at = NULL, planned_at = $5, catalog_revision = c.revision
FROM catalog_revision c
WHERE r.organization_id = $1 AND r.job_id = $2 AND r.state = 'skipped' AND r.slot_start >= $3 AND r.slot_end <= $4
  AND NOT EXISTS (SELECT FROM export_job_version v JOIN measurement_retention k USING (resolution_minutes)
                  WHERE v.organization_id = $1 AND v.job_id = $2 AND v.version = r.job_version
                    AND r.slot_start < k.dropped_until)
"""

_RESULT = """
INSERT INTO export_request_result AS a (organization_id, job_id, request_id, planned_until, run_count, done_at, outcome)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (organization_id, job_id, request_id) DO UPDATE
SET planned_until = excluded.planned_until, run_count = a.run_count + excluded.run_count, done_at = excluded.done_at,
    outcome = excluded.outcome
"""

_SEEN = "UPDATE export_job_progress SET seen_request = $3 WHERE organization_id = $1 AND job_id = $2"

_FARES = """
UPDATE export_job_progress SET failing_since = $3, failed_run_count = $4, told = $5
WHERE organization_id = $1 AND job_id = $2
"""


class RequestStore:
    """What was asked for. Every method raises Unavailable while PostgreSQL is away, every write Superseded."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def refuse(self, claim: Claim, request: Request, now: datetime, outcome: str) -> None:
        """Note that nothing came of a request, and why."""
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            await _done(connection, claim, request, now, 0, outcome)

    async def retry(self, claim: Claim, request: Request, now: datetime) -> None:
        """Try a run's parts, or those of all runs that failed or wait, again at once; a run that was given up by name.

        Runs of which retention has dropped rows stay as they were, and so does a run that was given up since.
        """
        key = (*claim.job, request.slot_start)
        async with transaction(self._pool) as connection:
            health = await hold(connection, claim)
            if await connection.fetchval(_GIVEN_UP_SINCE, *key, request.request_id):
                await _done(connection, claim, request, now, 0, "the run was given up since: nothing is sent")
                return
            await need_rows(connection)
            runs = _count(await connection.execute(_RETRY_RUNS, *key))
            gone = await connection.fetchval(_NOT_RETRIED, *key)
            parts = _count(await connection.execute(_RETRY_PARTS, *key))
            await connection.execute(_FARES, *claim.job, *after_resume(health))
            tried = f"{counted(parts, 'part')} {'is' if parts == 1 else 'are'} tried at once"
            outcome = f"{tried}; {counted(runs, 'run')} had failed"
            if gone:
                stay = "1 run stays as it was: its" if gone == 1 else f"{gone:,} runs stay as they were: their"
                outcome += f"; {stay} rows were dropped by retention"
            await _done(connection, claim, request, now, runs, outcome)

    async def resend(self, claim: Claim, request: Request, now: datetime) -> None:
        """Send a delivered run again: the same parts under the same ids. Not where retention has dropped rows of it."""
        if request.slot_start is None:
            raise RuntimeError("the table refuses a resend without a run")
        key = (*claim.job, request.slot_start)
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            await need_rows(connection)
            runs = 0
            if await dropped_of_run(connection, *key) is not None:
                outcome = "its rows were dropped by retention: nothing is sent"
            else:
                runs = _count(await connection.execute(_RESEND_RUN, *key))
                parts = _count(await connection.execute(_RESEND_PARTS, *key)) if runs else 0
                outcome = f"{parts:,} parts are sent again" if runs else "there is no such run that was delivered"
            await _done(connection, claim, request, now, runs, outcome)

    async def run_now(self, claim: Claim, request: Request, plan: Plan, seen_version: int, now: datetime) -> None:
        """Add the run of a slot that was ended early, and move the job on to what follows it."""
        slot = plan.runs[0].slot
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            await plan_runs(connection, claim.job, plan.runs, now)
            await move_on(connection, claim.job, plan, seen_version)
            outcome = f"the run from {slot.start.isoformat()} ends at {slot.end.isoformat()}"
            await _done(connection, claim, request, now, 1, outcome)

    async def taken(self, claim: Claim, wanted: Slot) -> list[Slot]:
        """Return the slots in a range that runs cover already, skipped ones too."""
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(_TAKEN, *claim.job, *wanted)
        return [Slot(*row) for row in rows]

    async def backfill(
        self,
        claim: Claim,
        request: Request,
        wanted: Slot,
        filling: Filling,
        kept_from: Mapping[int, datetime],
        now: datetime,
    ) -> bool:
        """Add runs of a range, the skipped ones at the first step; return whether the whole range is planned now.

        `kept_from` is what the filling takes account of: where rows were dropped since, nothing is added this time.
        """
        is_done = filling.planned_until >= wanted.end
        async with transaction(self._pool) as connection:
            await hold(connection, claim)
            dropped_until = await need_rows(connection)
            if any(dropped > kept_from.get(resolution, dropped) for resolution, dropped in dropped_until.items()):
                return False
            unskipped = 0
            if request.planned_until is None:
                unskipped = _count(await connection.execute(_UNSKIP, *claim.job, *wanted, now))
            await plan_runs(connection, claim.job, filling.runs, now)
            count = unskipped + len(filling.runs)
            outcome = "all slots of the range have runs" if is_done else "under way"
            await _result(connection, claim, request, filling.planned_until, count, now if is_done else None, outcome)
            if is_done:
                await connection.execute(_SEEN, *claim.job, request.request_id)
        return is_done


async def _done(
    connection: Connection, claim: Claim, request: Request, now: datetime, run_count: int, outcome: str
) -> None:
    await _result(connection, claim, request, None, run_count, now, outcome)
    await connection.execute(_SEEN, *claim.job, request.request_id)


async def _result(
    connection: Connection,
    claim: Claim,
    request: Request,
    planned_until: datetime | None,
    run_count: int,
    done_at: datetime | None,
    outcome: str,
) -> None:
    await connection.execute(_RESULT, *claim.job, request.request_id, planned_until, run_count, done_at, outcome)


def _count(status: str) -> int:
    """Return how many rows a command changed, from the server's word `UPDATE 3`."""
    return int(status.rpartition(" ")[2])
