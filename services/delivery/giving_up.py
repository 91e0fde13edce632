"""Gives failed runs up on request, whatever else their job does.

No claim is needed: nobody works on a failed run. So it is done for a job that is stopped, too, which is where it is
asked for most, and before what else was asked of the job.
"""

from datetime import datetime

import asyncpg
import structlog

from services.core.giving_up import outcome, outcome_of_all
from services.platform.metrics import DELIVERY_RUNS
from services.platform.postgres import Connection, Pool, transaction

log = structlog.get_logger()

# The job is held to the end, so that nobody tries its runs again meanwhile; one that is busy has its turn soon.
_ASKED = """
SELECT q.organization_id, q.job_id, q.request_id, q.slot_start, q.range_end
FROM export_request q JOIN export_job_progress p USING (organization_id, job_id)
WHERE q.kind = 'give_up' AND p.transport = $1
  AND NOT EXISTS (SELECT FROM export_request_result a
                  WHERE a.organization_id = q.organization_id AND a.job_id = q.job_id AND a.request_id = q.request_id)
ORDER BY q.request_id LIMIT 100
FOR UPDATE OF p SKIP LOCKED
"""

_STATE = "SELECT state FROM export_run WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3"

_GIVE_UP = """
WITH given_up AS (
    UPDATE export_run SET state = 'given_up', finished_at = $5
    WHERE organization_id = $1 AND job_id = $2 AND state = 'failed'
      AND (slot_start = $3 OR slot_end <= $4)
    RETURNING 1
)
SELECT count(*) FROM given_up
"""

# Another process may have done the same a moment ago.
_RESULT = """
INSERT INTO export_request_result (organization_id, job_id, request_id, run_count, done_at, outcome)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING
"""


class GiveUps:
    """Give-ups of the jobs of one transport."""

    def __init__(self, pool: Pool, transport: str) -> None:
        self._pool = pool
        self._transport = transport

    async def honour(self, now: datetime) -> None:
        """Give up what was asked for, a hundred requests at most. Raises Unavailable."""
        async with transaction(self._pool) as connection:
            asked = await connection.fetch(_ASKED, self._transport)
            done = [(request, await _give_up(connection, request, now)) for request in asked]
        for request, count in done:
            DELIVERY_RUNS.labels("given_up").inc(count)
            log.info("runs_given_up", job=request["job_id"], request_id=request["request_id"], runs=count)


async def _give_up(connection: Connection, request: asyncpg.Record, now: datetime) -> int:
    """Give up what one request names; return how many runs it were."""
    job = request["organization_id"], request["job_id"]
    slot_start = request["slot_start"]
    state = None if slot_start is None else await connection.fetchval(_STATE, *job, slot_start)
    count: int = await connection.fetchval(_GIVE_UP, *job, slot_start, request["range_end"], now)
    said = outcome_of_all(count) if slot_start is None else outcome(state)
    await connection.execute(_RESULT, *job, request["request_id"], count, now, said)
    return count
