"""Receivers that fail, refuse or are away; claims that are over: what is delivered then, and what is recorded."""

from datetime import timedelta
from typing import Any

import pytest

from services.api.job_queries import find_job
from services.api.job_store import resume_job
from services.core.retry import Answer, Verdict
from services.delivery.interval_counts import Intervals
from services.delivery.job_store import JobStore, Release
from services.delivery.run_store import Attempt, RunStore
from services.platform.clock import SystemClock
from services.platform.errors import Superseded
from services.platform.postgres import connect_pool
from tests.support.exports import Exports, at, delivering
from tests.support.job_states import resume, rows, until_states, until_stopped
from tests.support.polling import eventually_async
from tests.support.receiver import Authority, ScriptedReceiver, hang, running_receiver, status


async def test_a_failing_receiver_gets_everything_later_in_order_and_once(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=2_500)
    await exports.close_windows(60, at(8), at(10))
    receiver.script.extend([status(500), status(200), status(503), status(429), status(200)])
    job_id = await exports.add_job(to, resolution=60)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered", "delivered"])
    assert [(r.headers["Meterpost-Window-Start"][11:13], r.headers["Meterpost-Part"]) for r in receiver.accepted] == [
        ("08", "1"), ("08", "2"), ("09", "1"), ("09", "2"),
    ]  # fmt: skip
    assert len({r.part_id for r in receiver.accepted}) == 4
    by_id: dict[str, set[bytes]] = {}
    for received in receiver.received:
        by_id.setdefault(received.part_id, set()).add(received.body)
    assert all(len(bodies) == 1 for bodies in by_id.values())
    assert [(outcome, reason) for _, outcome, reason in await exports.attempts(job_id)] == [
        ("retry", "http_500"), ("delivered", "http_200"), ("retry", "http_503"), ("retry", "http_429"),
        ("delivered", "http_200"), ("delivered", "http_200"), ("delivered", "http_200"),
    ]  # fmt: skip


async def test_a_receiver_that_is_down_gets_everything_when_it_is_up(exports: Exports, authority: Authority) -> None:
    await exports.seed(meters=3)
    await exports.close_windows(15, at(8), at(10))
    async with running_receiver(authority.server) as first:
        port = first.port
    job_id = await exports.add_job({"url": f"https://localhost:{port}/", "ca_pem": authority.ca_pem})
    async with delivering(exports.url):

        async def failed() -> bool:
            return ("retry", "connection_refused") in {a[1:] for a in await exports.attempts(job_id)}

        await eventually_async(failed)
        async with running_receiver(authority.server, port) as receiver:
            await until_states(exports, job_id, ["delivered", "delivered"])
            assert [r.headers["Meterpost-Window-Start"][11:13] for r in receiver.received] == ["08", "09"]


@pytest.mark.parametrize("code", [401, 410])
async def test_a_refusal_stops_the_job_until_it_is_resumed(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], code: int
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(10))
    receiver.otherwise = status(code, "no\x1b[31m\nthanks")
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        stopped = await until_stopped(exports, job_id, f"http_{code}")
        assert "resume the job" in stopped["stopped_detail"]
        assert "no[31m thanks" in stopped["stopped_detail"] or "no [31m thanks" in stopped["stopped_detail"]
        await exports.close_windows(15, at(10), at(11))
        receiver.otherwise = status(200)
        await resume(exports, job_id)
        await until_states(exports, job_id, ["delivered"] * 3)
    assert [r.status for r in receiver.received] == [code, 200, 200, 200]
    assert receiver.received[0].part_id == receiver.received[1].part_id
    assert (await exports.progress(job_id))["stopped_at"] is None


async def test_clocks_that_disagree_neither_swallow_a_resume_nor_lift_a_later_stop(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    job_id = await exports.add_job(to)
    pool = await connect_pool(exports.url, max_size=2)
    try:
        async with delivering(exports.url):
            await until_stopped(exports, job_id, "http_410")
            for skew in (-timedelta(hours=1), timedelta(hours=1), -timedelta(hours=2)):
                receiver.otherwise = status(401)
                assert await resume_job(pool, 1, job_id, SystemClock().now() + skew)
                await until_stopped(exports, job_id, "http_401")
                async with pool.acquire() as connection:
                    assert (await find_job(connection, 1, job_id)).state == "stopped"
                receiver.otherwise = status(410)
                assert await resume_job(pool, 1, job_id, SystemClock().now())
                await until_stopped(exports, job_id, "http_410")
    finally:
        pool.terminate()
    # A stop that an older resume lifted would have been tried again and again.
    assert [r.status for r in receiver.received] == [410, 401, 410, 401, 410, 401, 410]


async def test_a_repaired_address_reaches_the_runs_that_wait(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """The run keeps its rows and its bytes; only where it goes is the newest version's."""
    await exports.seed(meters=4, sites=2)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job({"url": "http://insecure.example/"}, sites=[1])
    async with delivering(exports.url):
        stopped = await until_stopped(exports, job_id, "bad_settings")
        assert "https://" in stopped["stopped_detail"]
        await exports.add_version(job_id, to, effective_from=at(9), sites=[2])
        await resume(exports, job_id)
        await until_states(exports, job_id, ["delivered"])
    assert {row["SITE_ID"] for row in rows(receiver.received[0])} == {1}


async def test_what_is_added_to_the_catalog_reaches_the_runs_that_lacked_it(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """Those that were planned, and waited behind the one that stopped the job, too."""
    await exports.seed(meters=2)
    await exports.execute("DELETE FROM meter_configuration WHERE meter_id = 2")
    await exports.close_windows(15, at(8), at(10))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        stopped = await until_stopped(exports, job_id, "catalog_incomplete")
        assert "the catalog has no name for meter 2" in stopped["stopped_detail"]
        # Resumed for nothing, it says so again.
        await resume(exports, job_id)

        async def stopped_again() -> bool:
            found = (await exports.progress(job_id))["stopped_at"]
            return found is not None and found > stopped["stopped_at"]

        await eventually_async(stopped_again)
        await exports.execute("UPDATE catalog_revision SET revision = 2")
        await exports.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "VALUES (2, '-infinity', 2, 'Late', 1, 'm3', 1)"
        )
        await resume(exports, job_id)
        await until_states(exports, job_id, ["delivered"] * 2)
    assert await exports.column("SELECT catalog_revision FROM export_run") == [2, 2]
    assert {row["METER_NAME"] for one in receiver.accepted for row in rows(one)} == {"Meter 1", "Late"}


async def test_bytes_that_changed_are_not_sent(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
        await exports.execute("UPDATE measurement SET volume = volume + 5, energy_wh = energy_wh + 5")
        await until_stopped(exports, job_id, "rendering_differs")
        count = len(receiver.received)
    assert (await exports.attempts(job_id))[-1] == (1, "stop", "rendering_differs")
    assert len({r.body for r in receiver.received}) == 1
    assert len(receiver.received) == count


async def test_one_dead_destination_does_not_delay_others(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any]
) -> None:
    """Fifty jobs wait for a server that hangs; another job's part passes them all."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    async with running_receiver(authority.server) as dead:
        dead.otherwise = hang()
        for number in range(50):
            await exports.add_job({"url": f"{dead.url}/{number}", "ca_pem": authority.ca_pem})
        async with delivering(exports.url, concurrency=6, destination_concurrency=3):
            await eventually_async(lambda: len(dead.received) == 3)
            job_id = await exports.add_job(to)
            await until_states(exports, job_id, ["delivered"])
            assert dead.most_at_once == 3
            dead.closing.set()


async def test_a_zombies_result_is_refused(exports: Exports, to: dict[str, Any]) -> None:
    """A worker whose lease has passed to another can neither record, freeze, plan nor release."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job({"url": "https://127.0.0.1:9/"})
    async with delivering(exports.url):
        await eventually_async(lambda: exports.attempts(job_id))
    clock = SystemClock()
    pool = await connect_pool(exports.url, max_size=2)
    try:
        jobs, others, runs = JobStore(pool, "https", "zombie"), JobStore(pool, "https", "heir"), RunStore(pool)
        later = clock.now() + timedelta(hours=2)
        zombie = await jobs.claim(later, timedelta(seconds=30))
        assert zombie is not None
        assert await others.claim(later, timedelta(seconds=30)) is None
        heir = await others.claim(later + timedelta(seconds=31), timedelta(seconds=30))
        assert heir is not None
        assert heir.epoch == zombie.epoch + 1
        found = await runs.next_unfinished(zombie)
        assert found is not None
        run, part = found
        assert part is not None
        attempts = await exports.attempts(job_id)
        delivered = Attempt(later, later, Answer(Verdict.DELIVERED, "http_200", ""), None)
        for write in (
            lambda: runs.record(zombie, run, part, delivered),
            lambda: runs.freeze(zombie, run, [], Intervals(0, 0, 0), later),
            lambda: jobs.stop(zombie, later, "http_401", ""),
            lambda: jobs.load(zombie),
        ):
            with pytest.raises(Superseded):
                await write()
        await jobs.release(zombie, Release(None, "https", "nowhere:1"))
        assert (await exports.progress(job_id))["lease_owner"] == "heir"
        assert await exports.attempts(job_id) == attempts
        assert await exports.states(job_id) == ["frozen"]
        # The heir's first acknowledgement may have been lost: it records the same again.
        assert await runs.record(heir, run, part, delivered)
        assert await runs.record(heir, run, part, delivered)
        assert await exports.attempts(job_id) == [*attempts, (1, "delivered", "http_200")]
        assert await exports.states(job_id) == ["delivered"]
    finally:
        pool.terminate()
