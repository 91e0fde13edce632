"""Failed runs that nobody wants any more: given up, they are not sent, hold nothing, and stay on record."""

import hashlib
import json
from datetime import datetime
from typing import Any

import pytest

from services.api.job_queries import find_job
from services.api.request_store import (
    list_requests,
    request_give_up,
    request_recover,
    request_resend,
    request_retry,
)
from services.delivery.giving_up import GiveUps
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.metrics import REGISTRY
from services.platform.postgres import Pool, transaction
from tests.integration.test_dropped_runs import SOON, drop
from tests.integration.test_requests import asker, until_done, until_states, windows
from tests.support.exports import Exports, at, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, status


async def failed_runs(exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], until_hour: int) -> int:
    """Have a job's runs from 8 o'clock on fail; return its id."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(until_hour))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url, **SOON):
        await until_states(exports, job_id, ["failed"] * (until_hour - 8))
    return job_id


async def given_up(pool: Pool, job_id: int, slot_start: datetime) -> str:
    """Ask that a run is given up, and return what came of it."""
    return await until_done(pool, job_id, await request_give_up(pool, 1, job_id, slot_start, None, asker()))


async def test_a_run_that_was_given_up_is_not_recovered_and_the_others_are(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    job_id = await failed_runs(exports, receiver, to, until_hour=12)
    receiver.otherwise = status(200)
    counted = REGISTRY.get_sample_value("meterpost_delivery_runs_total", {"state": "given_up"}) or 0
    async with delivering(exports.url):
        assert await given_up(pool, job_id, at(9)) == "the run is given up"
        assert await given_up(pool, job_id, at(9)) == "the run had been given up before"
        until = await request_give_up(pool, 1, job_id, None, at(11), asker())
        assert await until_done(pool, job_id, until) == "2 runs are given up"
        assert await exports.states(job_id) == ["given_up", "given_up", "given_up", "failed"]
        request = await request_recover(pool, 1, job_id, asker())
        await until_states(exports, job_id, ["given_up", "given_up", "given_up", "delivered"])
        assert "1 run had failed" in await until_done(pool, job_id, request)
        await until_done(pool, job_id, await request_retry(pool, 1, job_id, None, asker()))
        assert (await exports.states(job_id))[0] == "given_up"
    assert windows(receiver) == ["11:00-12:00"]
    assert [one.run_count for one in await list_requests(pool, 1, job_id, 10)] == [0, 1, 2, 0, 1]
    assert REGISTRY.get_sample_value("meterpost_delivery_runs_total", {"state": "given_up"}) == counted + 3


async def test_runs_of_a_job_that_failures_paused_are_given_up_while_it_is_paused(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(15))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url, **{**SOON, "failed_runs": 5}):
        await until_states(exports, job_id, ["failed"] * 5 + ["planned"] * 2)
        tried = len(receiver.received)
        request = await request_give_up(pool, 1, job_id, None, at(13), asker())
        assert await until_done(pool, job_id, request) == "5 runs are given up"
        assert (await find_job(pool, 1, job_id)).state == "paused by failures"
        assert len(receiver.received) == tried
        receiver.otherwise = status(200)
        await request_recover(pool, 1, job_id, asker())
        await until_states(exports, job_id, ["given_up"] * 5 + ["delivered"] * 2)
    assert windows(receiver) == ["13:00-14:00", "14:00-15:00"]


async def test_what_is_not_failed_is_refused_and_what_was_tried_again_meanwhile_is_sent(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    job_id = await failed_runs(exports, receiver, to, until_hour=9)
    # Asked for while delivery was away; then somebody had the run tried again, before the first was heard of.
    meanwhile = await request_give_up(pool, 1, job_id, at(8), None, asker())
    await exports.execute("UPDATE export_run SET state = 'frozen'")
    async with delivering(exports.url, longest_retry_seconds=60):
        assert "is being sent, or waits to be, so it cannot" in await until_done(pool, job_id, meanwhile)
        with pytest.raises(UserError, match=f"the run job{job_id}-20261120T080000Z is being sent, or waits to be"):
            await request_give_up(pool, 1, job_id, at(8), None, asker())
        receiver.otherwise = status(200)
        await request_retry(pool, 1, job_id, at(8), asker())
        await until_states(exports, job_id, ["delivered"])
    with pytest.raises(UserError, match="was delivered, so it cannot be given up"):
        await request_give_up(pool, 1, job_id, at(8), None, asker())
    with pytest.raises(UserError, match="there is no run"):
        await request_give_up(pool, 1, job_id, at(3), None, asker())
    with pytest.raises(UserError, match="no failed run of a slot that ends by 2026-11-20T09:00:00Z"):
        await request_give_up(pool, 1, job_id, None, at(9), asker())
    with pytest.raises(UserError, match=f"there is no job {job_id}"):
        await request_give_up(pool, 2, job_id, at(8), None, asker())


async def test_a_run_that_was_given_up_is_sent_after_all_where_it_is_named_and_its_rows_are_kept(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    job_id = await failed_runs(exports, receiver, to, until_hour=10)
    receiver.otherwise = status(200)
    async with delivering(exports.url):
        await until_done(pool, job_id, await request_give_up(pool, 1, job_id, None, at(10), asker()))
        with pytest.raises(UserError, match=r"was given up, so it cannot be sent again; .* `meterpost runs retry job"):
            await request_resend(pool, 1, job_id, at(9), asker())
        await request_retry(pool, 1, job_id, at(9), asker())
        await until_states(exports, job_id, ["given_up", "delivered"])
    asked_before = await request_retry(pool, 1, job_id, at(8), asker())
    await drop(exports, at(9))
    async with delivering(exports.url):
        said = await until_done(pool, job_id, asked_before)
        assert said.endswith("0 runs had failed; 1 run stays as it was: its rows were dropped by retention")
        with pytest.raises(UserError, match="dropped by retention"):
            await request_retry(pool, 1, job_id, at(8), asker())
    assert await exports.states(job_id) == ["given_up", "delivered"]
    assert windows(receiver) == ["09:00-10:00"]


async def test_a_run_that_is_given_up_before_its_retry_has_its_turn_is_not_sent(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    """A give-up needs no turn of the job, a retry does, and may wait long for it."""
    job_id = await failed_runs(exports, receiver, to, until_hour=10)
    receiver.otherwise = status(200)
    retries = [await request_retry(pool, 1, job_id, at(hour), asker()) for hour in (8, 9)]
    await request_give_up(pool, 1, job_id, at(8), None, asker())
    await request_give_up(pool, 1, job_id, None, at(10), asker())
    await GiveUps(pool, "https").honour(SystemClock().now())
    async with delivering(exports.url):
        for retry in retries:
            assert await until_done(pool, job_id, retry) == "the run was given up since: nothing is sent"
        assert await exports.states(job_id) == ["given_up", "given_up"]
        # Who asks once more has the last word again.
        await request_retry(pool, 1, job_id, at(9), asker())
        await until_states(exports, job_id, ["given_up", "delivered"])
    assert windows(receiver) == ["09:00-10:00"]


async def test_the_chain_of_manifests_names_the_run_that_was_given_up(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    """Its manifest was fixed, and may have been received: its number is not given to another run."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    await exports.execute("UPDATE export_job_version SET manifest = true")
    async with delivering(exports.url, **SOON):
        await until_states(exports, job_id, ["delivered"])
        receiver.otherwise = status(503)
        await exports.close_windows(15, at(9), at(10))
        await until_states(exports, job_id, ["delivered", "failed"])
        await given_up(pool, job_id, at(9))
        receiver.otherwise = status(200)
        await exports.close_windows(15, at(10), at(11))
        await until_states(exports, job_id, ["delivered", "given_up", "delivered"])
    bodies = await exports.column("SELECT body FROM export_manifest ORDER BY number")
    said = [json.loads(body) for body in bodies]
    assert [one["number"] for one in said] == [1, 2, 3]
    assert [one["previous"] and one["previous"]["sha256"] for one in said] == [
        None,
        *[hashlib.sha256(body).hexdigest() for body in bodies[:2]],
    ]
    received = [json.loads(r.body)["run"] for r in receiver.accepted if r.headers["Meterpost-Part"] == "manifest"]
    assert received == [said[0]["run"], said[2]["run"]]
    assert said[2]["previous"]["run"] == f"job{job_id}-20261120T090000Z"


async def test_a_job_that_is_busy_has_its_turn_and_two_processes_do_it_once(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    job_id = await failed_runs(exports, receiver, to, until_hour=9)
    request_id = await request_give_up(pool, 1, job_id, at(8), None, asker())
    give_ups, now = GiveUps(pool, "https"), SystemClock().now()
    async with transaction(pool) as busy:
        await busy.execute("SELECT FROM export_job_progress FOR UPDATE")
        await give_ups.honour(now)
        assert await exports.states(job_id) == ["failed"]
    await GiveUps(pool, "sftp").honour(now)
    assert await exports.states(job_id) == ["failed"], "another transport's job"
    await give_ups.honour(now)
    await give_ups.honour(now)
    [known] = await list_requests(pool, 1, job_id, 10)
    assert (known.request_id, known.run_count, known.outcome) == (request_id, 1, "the run is given up")
    assert await exports.column("SELECT finished_at FROM export_run") == [now]


async def test_a_give_up_wakes_nobody(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    job_id = await failed_runs(exports, receiver, to, until_hour=9)
    async with delivering(exports.url):
        await given_up(pool, job_id, at(8))
        epoch = (await exports.progress(job_id))["epoch"]
        # What is asked afterwards is done, though the one before was never the job's turn.
        retried = await request_retry(pool, 1, job_id, None, asker())
        await until_done(pool, job_id, retried)

        async def rests() -> bool:
            progress = await exports.progress(job_id)
            return progress["next_attempt_at"] is None and progress["seen_request"] == retried

        await eventually_async(rests)
    assert (await exports.progress(job_id))["epoch"] <= epoch + 2
