"""Runs whose rows retention has dropped: they are not sent again, and stop no job."""

from datetime import datetime
from typing import Any

import pytest

from services.api.request_store import list_requests, request_recover, request_resend, request_retry
from services.platform.errors import UserError
from services.platform.kept_rows import judge_needs
from services.platform.postgres import Pool, transaction
from tests.integration.test_needed_rows import waits
from tests.integration.test_requests import asker, until_done, until_states, windows
from tests.support.exports import Exports, at, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, status

SOON: dict[str, Any] = {"retry_window_hours": 0.1 / 3_600, "failed_runs": 100}
DROPPED = "INSERT INTO measurement_retention (resolution_minutes, keep, dropped_until) VALUES (15, '1 day', $1)"


async def drop(exports: Exports, until: datetime) -> None:
    """Do what retention does."""
    await exports.execute("DELETE FROM measurement WHERE window_start < $1", until)
    await exports.execute(DROPPED, until)


async def test_a_run_whose_rows_are_gone_is_not_sent_again_and_others_are(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2)
    await exports.close_windows(15, at(8), at(10))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"] * 2)
        await drop(exports, at(9))
        with pytest.raises(UserError, match=r"15 minutes before 2026-11-20T09:00:00Z were dropped by retention"):
            await request_resend(pool, 1, job_id, at(8), asker())
        assert await list_requests(pool, 1, job_id, 10) == []
        await request_resend(pool, 1, job_id, at(9), asker())
        await eventually_async(lambda: len(receiver.accepted) == 3)
        await until_states(exports, job_id, ["delivered"] * 2)


async def test_a_resend_that_was_asked_for_before_the_drop_sends_nothing_and_stops_nothing(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2)
    await exports.close_windows(15, at(8), at(10))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"] * 2)
    request = await request_resend(pool, 1, job_id, at(8), asker())
    await drop(exports, at(9))
    async with delivering(exports.url):
        assert await until_done(pool, job_id, request) == "its rows were dropped by retention: nothing is sent"
        await exports.close_windows(15, at(10), at(11))
        await until_states(exports, job_id, ["delivered"] * 3)
    assert windows(receiver) == ["08:00-09:00", "09:00-10:00", "10:00-11:00"]


async def test_a_resend_waits_for_the_drop_that_is_under_way_and_hears_of_it(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        async with transaction(pool) as dropping:
            await judge_needs(dropping)
            request = await request_resend(pool, 1, job_id, at(8), asker())
            await waits(pool, "ShareLock")
            await dropping.execute(DROPPED, at(9))
        assert "dropped by retention" in await until_done(pool, job_id, request)
    assert len(receiver.received) == 1


async def test_failed_runs_whose_rows_are_gone_stay_failed_and_the_others_are_recovered(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(10))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url, **SOON):
        await until_states(exports, job_id, ["failed"] * 2)
        await drop(exports, at(9))
        receiver.otherwise = status(200)
        with pytest.raises(UserError, match="cannot be tried again: rows of 15 minutes before"):
            await request_retry(pool, 1, job_id, at(8), asker())
        request = await request_recover(pool, 1, job_id, asker())
        said = await until_done(pool, job_id, request)
        assert said.endswith("1 run had failed; 1 run stays as it was: its rows were dropped by retention")
        await until_states(exports, job_id, ["failed", "delivered"])
    assert windows(receiver) == ["09:00-10:00"]


async def test_a_run_that_lost_its_rows_all_the_same_fails_by_itself_and_the_job_goes_on(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
    await drop(exports, at(9))
    await exports.close_windows(15, at(9), at(10))
    receiver.otherwise = status(200)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["failed", "delivered"])
    assert windows(receiver) == ["09:00-10:00"]
    assert (1, "stop", "rows_dropped") in await exports.attempts(job_id)
    progress = await exports.progress(job_id)
    assert (progress["stopped_at"], progress["failed_run_count"]) == (None, 0)
