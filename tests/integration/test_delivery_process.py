"""The delivery process itself: killed, stopped, woken, without its database for a moment."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.core.messages import WindowsClosed, encode
from services.delivery import job_store, worker
from services.local.kafka_server import KafkaServer
from services.platform.topics import WINDOWS_CLOSED
from tests.support.exports import NO_KAFKA, Exports, at, delivering
from tests.support.job_states import until_states
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, hang, status


async def test_a_killed_process_sends_the_same_again_under_the_same_id(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], tmp_path: Path
) -> None:
    """Kill -9 after the receiver's answer and before our commit: one id, the same bytes, and nothing missing."""
    await exports.seed(meters=3)
    await exports.close_windows(15, at(8), at(10))
    job_id = await exports.add_job(to)
    platform = Platform(NO_KAFKA, exports.url, "", tmp_path)
    environment = {"METERPOST_LEASE_SECONDS": "1", "METERPOST_LOOK_SECONDS": "0.05"}
    with running(platform):
        async with AsyncExitStack() as held:
            connection = await asyncpg.connect(exports.url)
            held.push_async_callback(connection.close)
            await held.enter_async_context(connection.transaction())
            # Attempts cannot be recorded while this lasts.
            await connection.execute("LOCK TABLE delivery_attempt IN SHARE MODE")
            process = platform.start("services.delivery", "https", environment=environment)
            await eventually_async(lambda: receiver.accepted, 20)

            async def commits() -> list[Any]:
                return await exports.column(
                    "SELECT 1 FROM pg_locks WHERE relation = 'delivery_attempt'::regclass AND NOT granted"
                )

            await eventually_async(commits, because="the result is about to be recorded")
            process.kill()
        assert await exports.attempts(job_id) == []
        platform.start("services.delivery", "https", environment=environment)
        await until_states(exports, job_id, ["delivered", "delivered"], 30)
    ids = [r.part_id for r in receiver.accepted]
    assert ids == [ids[0], ids[0], ids[2]]
    assert ids[0] != ids[2]
    assert receiver.accepted[0].body == receiver.accepted[1].body


async def test_postgresql_away_for_a_moment_costs_no_second_delivery(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """Every connection is broken off while the receiver thinks; its answer is recorded all the same."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    broken = asyncio.Event()

    async def answer(_receiver: ScriptedReceiver, _request: Any) -> Any:
        await exports.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        broken.set()
        return await status(200)(_receiver, _request)

    receiver.script.append(answer)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        # Not asking before that: our own connection would be broken off, too.
        await asyncio.wait_for(broken.wait(), 15)
        await until_states(exports, job_id, ["delivered"])
    assert len(receiver.received) == 1


async def test_the_doorbell_wakes_delivery_before_its_timer_does(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], kafka_server: KafkaServer, tmp_path: Path
) -> None:
    """With an hour between two looks of its own, what was closed still goes out at once."""
    platform = Platform(kafka_server.bootstrap_servers, exports.url, f"bell-{time.monotonic_ns()}.", tmp_path)
    await platform.declare_topics()
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    more = {"kafka_bootstrap_servers": platform.bootstrap_servers, "topic_prefix": platform.prefix}
    async with delivering(exports.url, look_seconds=3_600, **more), platform.producer() as producer:
        await until_states(exports, job_id, ["delivered"])
        for until in (10, 11):
            await exports.close_windows(15, at(until - 1), at(until))
            closed = WindowsClosed(15, at(until))
            await producer.send(platform.topic(WINDOWS_CLOSED), encode(closed), key=b"15")
            await until_states(exports, job_id, ["delivered"] * (until - 8))


async def test_a_stop_in_the_middle_of_an_attempt_gives_the_job_back(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """The next process need not wait for the lease to end, and sends the same part again."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.script.append(hang())
    job_id = await exports.add_job(to)
    async with delivering(exports.url, lease_seconds=3_600, shutdown_deadline_seconds=1):
        await eventually_async(lambda: receiver.received)
    assert (await exports.progress(job_id))["lease_owner"] is None
    async with delivering(exports.url, instance="another"):
        await until_states(exports, job_id, ["delivered"])
    assert len({(r.part_id, r.body) for r in receiver.received}) == 1


async def test_a_process_takes_back_what_its_predecessor_of_the_same_name_held(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
    await exports.execute(
        "UPDATE export_job_progress SET lease_owner = 'delivery-in-test', lease_until = now() + interval '1 hour', "
        "next_attempt_at = now() + interval '1 hour'"
    )
    receiver.otherwise = status(200)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])


async def test_new_jobs_are_followed_however_many_before_them_cannot_be_yet(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of a minute were never closed, so jobs that begin with them have no first slot yet."""
    monkeypatch.setattr(job_store, "MAX_ADOPTED", 2)
    monkeypatch.setattr(worker, "MAX_ADOPTED", 2)
    await exports.seed(meters=1)
    for number in range(5):
        waiting = await exports.add_job(to, frequency=5, resolution=1, name=f"Minutes {number}")
        await exports.add_version(waiting, to, effective_from=at(20), name=f"Minutes {number}")
    job_id = await exports.add_job(to)
    await exports.close_windows(15, at(8), at(9))
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])


async def test_an_unknown_transport_is_named_with_those_there_are(exports: Exports, tmp_path: Path) -> None:
    process = Platform(NO_KAFKA, exports.url, "", tmp_path).start("services.delivery", "pigeon")
    await eventually_async(lambda: process.exit_code is not None)
    assert process.exit_code == 2
    assert "usage: python -m services.delivery" in process.log_tail(5)
    assert "invalid choice: 'pigeon' (choose from" in process.log_tail(5)
