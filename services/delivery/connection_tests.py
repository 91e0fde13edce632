"""Tries the connections that people ask about, beside the deliveries and without a claim of the job.

A job that is stopped by a foreign host key or a wrong password is just the one whose connection is tried. Each step is
written as soon as it is known. A process that dies leaves its test to the next one.
"""

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import structlog

from services.core.connection_tests import TESTS_WAIT
from services.delivery.model import JobKey
from services.delivery.transports.base import Step, Transport
from services.delivery.unsealing import Discreet, unseal
from services.platform.clock import Clock
from services.platform.errors import Unavailable, UserError
from services.platform.postgres import Patience, Pool, transaction, wait_or_stop
from services.platform.secrets import KeyMissing, Vault

AT_ONCE = 8
LOOK_SECONDS = 0.5
TAKEN_OVER_AFTER = timedelta(minutes=2)
"""Longer than any transport's total deadline."""

# The row that another process has just taken is not locked any more, but its result stands in the way.
_CLAIM = """
INSERT INTO connection_test_result AS r (organization_id, job_id, test_id, started_at)
SELECT organization_id, job_id, test_id, $2 FROM connection_test t
WHERE transport = $1 AND requested_at > $3 AND NOT EXISTS (
    SELECT FROM connection_test_result d
    WHERE d.organization_id = t.organization_id AND d.job_id = t.job_id AND d.test_id = t.test_id
      AND (d.done_at IS NOT NULL OR d.started_at > $4))
ORDER BY requested_at LIMIT 1 FOR UPDATE SKIP LOCKED
ON CONFLICT (organization_id, job_id, test_id) DO UPDATE
SET epoch = r.epoch + 1, started_at = excluded.started_at, steps = '[]', host_key = ''
WHERE r.done_at IS NULL AND r.started_at <= $4
RETURNING organization_id, job_id, test_id, epoch
"""
_SETTINGS = """
SELECT v.transport_settings FROM connection_test t
JOIN export_job_version v ON v.organization_id = t.organization_id AND v.job_id = t.job_id AND v.version = t.job_version
WHERE t.organization_id = $1 AND t.job_id = $2 AND t.test_id = $3
"""
_FOUND = """
UPDATE connection_test_result
SET steps = $5::jsonb, host_key = $6, problem = $7, done_at = $8
WHERE organization_id = $1 AND job_id = $2 AND test_id = $3 AND epoch = $4 AND done_at IS NULL
"""
log = structlog.get_logger()


class Taken(NamedTuple):
    """A test that is this process's to make."""

    organization_id: int
    job_id: int
    test_id: int
    epoch: int


class ConnectionTests:
    """Makes the tests of one transport's jobs."""

    def __init__(self, name: str, transport: Transport, pool: Pool, vault: Vault, clock: Clock) -> None:
        self._name = name
        self._transport = transport
        self._pool = pool
        self._vault = vault
        self._clock = clock
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, patience: Patience, look_seconds: float = LOOK_SECONDS) -> None:
        """Make tests until told to stop; those under way are then left to another process."""
        try:
            while not patience.stopping.is_set():
                while len(self._under_way) < AT_ONCE and (taken := await patience.postgres(self._take)) is not None:
                    task = asyncio.create_task(self._make(taken, patience))
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)
                await wait_or_stop(patience.stopping, look_seconds)
        except Unavailable:
            return  # told to stop while PostgreSQL is away
        finally:
            under_way = list(self._under_way)
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _take(self) -> Taken | None:
        now = self._clock.now()
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_CLAIM, self._name, now, now - TESTS_WAIT, now - TAKEN_OVER_AFTER)
        return None if row is None else Taken(*row)

    async def _make(self, taken: Taken, patience: Patience) -> None:
        steps: list[Step] = []
        problem = ""
        try:
            async for step in self._destination(await patience.postgres(lambda: self._settings(taken)), taken).check():
                steps.append(step)
                await patience.postgres(lambda: self._note(taken, steps))
        except (KeyMissing, UserError) as error:
            problem = str(error)
        except Unavailable:
            return
        except Exception as error:
            log.exception("connection_test_failed", job=taken.job_id, test=taken.test_id, error=repr(error))
            problem = "the test ended by a mistake of ours; the platform's operator finds it in the log"
        try:
            await patience.postgres(lambda: self._note(taken, steps, problem, is_done=True))
        except Unavailable:
            return
        passed = not problem and all(step.passed for step in steps)
        log.info("connection_tested", job=taken.job_id, test=taken.test_id, passed=passed)

    def _destination(self, settings: Mapping[str, Any], taken: Taken) -> Discreet:
        return Discreet(self._transport, unseal(self._vault, JobKey(taken.organization_id, taken.job_id), settings))

    async def _settings(self, taken: Taken) -> Mapping[str, Any]:
        async with transaction(self._pool) as connection:
            text = await connection.fetchval(_SETTINGS, *taken[:3])
        found: Mapping[str, Any] = json.loads(text)
        return found

    async def _note(self, taken: Taken, steps: list[Step], problem: str = "", *, is_done: bool = False) -> None:
        found = json.dumps([{"step": one.name, "passed": one.passed, "sentence": one.sentence} for one in steps])
        host_key = next((one.host_key for one in steps if one.host_key), "")
        now = self._clock.now() if is_done else None
        async with transaction(self._pool) as connection:
            await connection.execute(_FOUND, *taken, found, host_key, problem, now)
