"""A delivery process that is killed or frozen at any point of a part's way: the receiver's set is exact in the end."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.integration.test_requests import until_states
from tests.support.exports import NO_KAFKA, Exports, at
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, status

QUICK = {
    "METERPOST_LEASE_SECONDS": "1",
    "METERPOST_LOOK_SECONDS": "0.05",
    "METERPOST_FIRST_RETRY_SECONDS": "0.05",
    "METERPOST_LONGEST_RETRY_SECONDS": "0.2",
}
HOURS = 3


def assert_exact(receiver: ScriptedReceiver, job_id: int, repeated: Mapping[str, int]) -> None:
    """Every part came, in order, with one set of bytes an id, and was repeated only where that cannot be avoided."""
    ids = [request.part_id for request in receiver.accepted]
    wanted = [f"job{job_id}-20261120T{hour:02}0000Z-part{part}" for hour in range(8, 8 + HOURS) for part in (1, 2)]
    assert [name.partition("-")[2] for name in dict.fromkeys(ids)] == wanted
    assert len({(request.part_id, request.body) for request in receiver.accepted}) == len(wanted)
    again = {name.partition("-")[2]: count for name, count in Counter(ids).items() if count > 1}
    assert again == {f"job{job_id}-20261120T080000Z-part{part}": count for part, count in repeated.items()}


@pytest.fixture
async def job_id(exports: Exports, to: dict[str, Any]) -> int:
    """Give a job with three runs of two parts; 2,000 rows make a body of half a megabyte."""
    await exports.seed(meters=2_100)
    await exports.close_windows(60, at(8), at(8 + HOURS))
    return await exports.add_job(to, resolution=60)


@pytest.mark.parametrize(
    ("point", "repeated"),
    [
        ("delivery.before_send", {}),
        ("delivery.after_answer", {"1": 2}),
        ("delivery.before_commit", {"1": 2}),
        ("delivery.after_answer:2", {"2": 2}),
    ],
)
async def test_killed_at_a_point(
    exports: Exports, receiver: ScriptedReceiver, job_id: int, tmp_path: Path, point: str, repeated: dict[str, int]
) -> None:
    with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
        doomed = platform.start("services.delivery", "https", environment=QUICK | {"METERPOST_CRASH_AT": point})
        await eventually_async(lambda: doomed.exit_code is not None, 30, because="it is killed")
        assert doomed.exit_code == -signal.SIGKILL
        platform.start("services.delivery", "https", environment=QUICK)
        await until_states(exports, job_id, ["delivered"] * HOURS, 30)
    assert_exact(receiver, job_id, repeated)


async def test_killed_in_the_middle_of_the_body(
    exports: Exports, receiver: ScriptedReceiver, job_id: int, tmp_path: Path
) -> None:
    """The receiver has read some of it, and nothing of it counts before the whole request is there."""
    begun, killed = asyncio.Event(), asyncio.Event()
    read: list[int] = []

    async def read_some(_receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        read.append(len(await request.content.readany()))
        begun.set()
        await killed.wait()
        return web.Response(status=400)

    receiver.unread.append(read_some)
    with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
        doomed = platform.start("services.delivery", "https", environment=QUICK)
        await eventually_async(begun.is_set, 30, because="the body is on its way")
        doomed.kill()
        killed.set()
        assert 0 < read[0] < 500_000
        platform.start("services.delivery", "https", environment=QUICK)
        await until_states(exports, job_id, ["delivered"] * HOURS, 30)
    assert_exact(receiver, job_id, {})


async def test_a_worker_that_was_frozen_past_its_lease_records_nothing(
    exports: Exports, receiver: ScriptedReceiver, job_id: int, tmp_path: Path
) -> None:
    """SIGSTOP while the receiver thinks; another process takes over; what the first one hears at last is refused."""
    thinking, answer = asyncio.Event(), asyncio.Event()

    async def think(_receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        thinking.set()
        await answer.wait()
        return await status(200)(_receiver, request)

    receiver.script.append(think)
    with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
        frozen = platform.start("services.delivery", "https", environment=QUICK)
        await eventually_async(thinking.is_set, 30, because="the first part is with the receiver")
        assert frozen.pid is not None
        os.kill(frozen.pid, signal.SIGSTOP)
        heir = platform.start("services.delivery", "https", environment=QUICK)
        await until_states(exports, job_id, ["delivered"] * HOURS, 30)
        before = await exports.fetch("SELECT * FROM delivery_attempt ORDER BY slot_start, part, attempt")
        answer.set()
        os.kill(frozen.pid, signal.SIGCONT)
        await eventually_async(lambda: "superseded" in frozen.log_tail(50), 20, because="its result is refused")
        assert await exports.fetch("SELECT * FROM delivery_attempt ORDER BY slot_start, part, attempt") == before
        assert frozen.is_running
        assert heir.is_running
    assert len(before) == 2 * HOURS
    assert_exact(receiver, job_id, {"1": 2})
