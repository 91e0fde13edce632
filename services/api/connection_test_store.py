"""The only SQL that asks delivery to try the connection to a job's server, and reads what it found.

The delivery process of the job's transport tries it, because it is the one that reaches customers' servers.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from services.api.job_queries import Job
from services.api.request_store import Asker
from services.core.connection_tests import TESTS_WAIT
from services.core.file_transfer import SFTP_PORT
from services.platform.errors import UserError
from services.platform.postgres import Connection

KEPT = timedelta(days=30)
MAX_UNDER_WAY = 20
"""Of one organization, so that nobody scans networks by jobs."""

TestState = Literal["waiting", "under way", "passed", "failed", "expired"]

_UNDER_WAY = """
SELECT count(*) FILTER (WHERE t.job_id = $2) AS of_job, count(*) AS of_all, max(t.test_id) FILTER (WHERE t.job_id = $2)
FROM connection_test t LEFT JOIN connection_test_result r USING (organization_id, job_id, test_id)
WHERE t.organization_id = $1 AND t.requested_at > $3 AND r.done_at IS NULL
"""
_ONE = """
SELECT t.test_id, t.job_version, t.transport, t.requested_at, t.requested_by, r.started_at, r.done_at,
       coalesce(r.steps, '[]'), coalesce(r.host_key, ''), coalesce(r.problem, '')
FROM connection_test t LEFT JOIN connection_test_result r USING (organization_id, job_id, test_id)
WHERE t.organization_id = $1 AND t.job_id = $2 AND t.test_id = $3
"""


class StepFound(NamedTuple):
    """One step of a test, as delivery took it."""

    step: str
    passed: bool
    sentence: str


class ConnectionTest(NamedTuple):
    """A test and what is known of it so far."""

    test_id: int
    job_version: int
    transport: str
    requested_at: datetime
    requested_by: str
    started_at: datetime | None
    done_at: datetime | None
    steps: Sequence[StepFound]
    host_key: str
    """The key that the server showed and that was not approved; empty: none."""
    problem: str

    def state(self, now: datetime) -> TestState:
        """Where the test stands; expired: nobody took it in time."""
        if self.done_at is not None:
            passed = not self.problem and bool(self.steps) and all(step.passed for step in self.steps)
            return "passed" if passed else "failed"
        if now - self.requested_at > TESTS_WAIT:
            return "expired"
        return "waiting" if self.started_at is None else "under way"


async def request_test(connection: Connection, job: Job, asker: Asker) -> int:
    """Ask for a test of the job's newest settings; return its id. The job is locked. Raises UserError."""
    of_job, of_all, newest = await connection.fetchrow(
        _UNDER_WAY, job.organization_id, job.job_id, asker.at - TESTS_WAIT
    ) or (0, 0, None)
    if of_job:
        raise UserError(f"the connection test {newest} of job {job.job_id} is not done yet: wait for its result")
    if of_all >= MAX_UNDER_WAY:
        raise UserError(f"{of_all} connection tests are under way; wait for some of them")
    test_id: int = await connection.fetchval(
        """
        INSERT INTO connection_test (organization_id, job_id, job_version, transport, requested_at, requested_by)
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING test_id
        """,
        *(job.organization_id, job.job_id, job.version, job.settings.transport, asker.at, asker.name),
    )
    return test_id


async def find_test(connection: Connection, job: Job, test_id: int) -> ConnectionTest | None:
    """Return a test of the job."""
    row = await connection.fetchrow(_ONE, job.organization_id, job.job_id, test_id)
    if row is None:
        return None
    found = ConnectionTest(*row)
    return found._replace(steps=[StepFound(**step) for step in json.loads(row[7])])


async def tested_server(connection: Connection, job: Job, test: ConnectionTest) -> tuple[str | None, int]:
    """Return host and port of the SFTP server that a test of the job tried."""
    row = await connection.fetchrow(
        "SELECT transport_settings->>'host', coalesce((transport_settings->>'port')::int, $4) FROM export_job_version "
        "WHERE organization_id = $1 AND job_id = $2 AND version = $3 AND transport = 'sftp'",
        *(job.organization_id, job.job_id, test.job_version, SFTP_PORT),
    )
    return (None, 0) if row is None else (row[0], row[1])


async def forget_tests(connection: Connection, before: datetime) -> None:
    """Remove old tests, with their results."""
    await connection.execute("DELETE FROM connection_test WHERE requested_at < $1", before)
