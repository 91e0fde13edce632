"""What of the slots a customer can take from the others: many dead destinations, and servers that many share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from tests.support.exports import Exports, at, delivering
from tests.support.job_states import until_states
from tests.support.polling import eventually_async
from tests.support.receiver import Authority, ScriptedReceiver, hang, running_receiver, status

SLOTS = 8


@pytest.fixture
async def tarpits(authority: Authority) -> AsyncIterator[list[ScriptedReceiver]]:
    """Give more servers than there are slots, at ports of their own, which take a request and never answer."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(running_receiver(authority.server)) for _ in range(SLOTS * 3 // 2)]
        for one in made:
            one.otherwise = hang()
        yield made
        for one in made:
            one.closing.set()


def hanging(tarpits: list[ScriptedReceiver]) -> int:
    return sum(one.at_once for one in tarpits)


async def test_more_dead_destinations_of_one_organization_than_slots_slow_no_other(
    exports: Exports, authority: Authority, to: dict[str, Any], tarpits: list[ScriptedReceiver]
) -> None:
    await exports.seed(meters=1)
    await exports.add_organization(2)
    await exports.close_windows(15, at(8), at(10))
    # The other organization's job rests until its window: nothing of it has been seen when the tarpits are met.
    healthy = await exports.add_job(to, starts_at=at(10), organization_id=2)
    async with delivering(exports.url, concurrency=SLOTS):
        await eventually_async(lambda: exports.progress(healthy))
        dead = [await exports.add_job({"url": one.url, "ca_pem": authority.ca_pem}) for one in tarpits]
        await eventually_async(lambda: hanging(tarpits) == SLOTS // 2)
        await exports.close_windows(15, at(10), at(12))
        await until_states(exports, healthy, ["delivered", "delivered"], timeout_s=10)
        assert hanging(tarpits) == SLOTS // 2
        assert [await exports.attempts(job_id) for job_id in dead] == [[]] * len(dead)
        for one in tarpits:
            one.closing.set()


async def test_destinations_that_are_known_to_fail_leave_slots_for_the_same_organizations_others(
    exports: Exports, authority: Authority, to: dict[str, Any], tarpits: list[ScriptedReceiver]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    for one in tarpits:
        one.script.append(status(503))
    dead = [await exports.add_job({"url": one.url, "ca_pem": authority.ca_pem}) for one in tarpits]
    async with delivering(exports.url, concurrency=SLOTS):
        await eventually_async(lambda: hanging(tarpits) == SLOTS // 2)
        assert [len(await exports.attempts(job_id)) for job_id in dead] == [1] * len(dead)
        healthy = await exports.add_job(to)
        await until_states(exports, healthy, ["delivered"], timeout_s=10)
        assert hanging(tarpits) == SLOTS // 2
        for one in tarpits:
            one.closing.set()


async def test_a_full_account_does_not_slow_the_others_on_the_same_server(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """One organization's quota is used up; another's parts still travel several at once to the same host and port."""
    await exports.seed(meters=1)
    await exports.add_organization(2)
    await exports.close_windows(15, at(8), at(9))
    together = asyncio.Barrier(3)

    async def by_account(_receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/full"):
            return await status(503, "quota exceeded")(_receiver, request)
        await together.wait()
        return web.Response()

    receiver.otherwise = by_account
    full = await exports.add_job({**to, "url": f"https://127.0.0.1:{receiver.port}/full"})
    async with delivering(exports.url, destination_concurrency=3):
        await eventually_async(lambda: len(receiver.received) > 6)
        others = [await exports.add_job(to, organization_id=2) for _ in range(3)]
        for job_id in others:
            await until_states(exports, job_id, ["delivered"])
        assert {reason for _, _, reason in await exports.attempts(full)} == {"http_503"}
