"""Waiting for what becomes of jobs and their runs."""

import json
from typing import Any

from tests.support.exports import Exports
from tests.support.polling import eventually_async
from tests.support.receiver import Received


def rows(received: Received) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(received.body)["measurements"]
    return found


async def until_states(exports: Exports, job_id: int, expected: list[str], timeout_s: float = 15) -> None:
    async def reached() -> bool:
        return await exports.states(job_id) == expected

    try:
        await eventually_async(reached, timeout_s)
    except AssertionError:
        found = (await exports.states(job_id), await exports.attempts(job_id), await exports.progress(job_id))
        raise AssertionError(f"expected {expected}, found {found}") from None


async def until_stopped(exports: Exports, job_id: int, reason: str) -> dict[str, Any]:
    async def stopped() -> bool:
        return (await exports.progress(job_id)).get("stopped_reason") == reason

    await eventually_async(stopped, because=f"job stopped for {reason}")
    return await exports.progress(job_id)


async def resume(exports: Exports, job_id: int) -> None:
    await exports.execute("UPDATE export_job SET resumed_at = clock_timestamp() WHERE job_id = $1", job_id)
