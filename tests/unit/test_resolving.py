"""Names whose name servers hang cost other names nothing; the resolver is one that hangs for certain names."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from services.platform import resolving
from services.platform.outbound import NotResolved, Outbound, parse_networks
from services.platform.resolving import MOST_THREADS, QUICK_LOOK_UPS, SUSPECT_LOOK_UPS

QUICKLY = 3.0
"""Less than a connect deadline, more than a look-up may take before it counts as one that hangs."""


class Hanging:
    """What was looked up; names of `hangs-…` get an answer, an error, only when the test ends."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.end = threading.Event()

    def getaddrinfo(self, host: str, port: int, **_more: Any) -> list[Any]:
        self.looks[host] += 1
        if host.startswith("hangs-"):
            self.end.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """Give the resolver."""
    hanging = Hanging()
    monkeypatch.setattr(socket, "getaddrinfo", hanging.getaddrinfo)
    yield hanging
    hanging.end.set()


async def healthy(outbound: Outbound, count: int = 5) -> float:
    """Resolve names that are well; return how many seconds the slowest took."""
    begun = time.monotonic()
    async with asyncio.timeout(20):
        await asyncio.gather(*(outbound.resolve(f"well-{number}.example", 22) for number in range(count)))
    return time.monotonic() - begun


async def end(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_more_names_that_hang_than_there_are_places_keep_nobody_waiting_for_long(names: Hanging) -> None:
    outbound = Outbound(parse_networks("127.0.0.1"))
    hanging = [asyncio.create_task(outbound.resolve(f"hangs-{n}.example", 22)) for n in range(QUICK_LOOK_UPS + 8)]
    await asyncio.sleep(0)
    assert await healthy(outbound) < QUICKLY
    await end(hanging)
    # From now on they are known: tried again and again, they take the places of the suspect ones alone.
    again = [asyncio.create_task(outbound.resolve(f"hangs-{n}.example", 22)) for n in range(QUICK_LOOK_UPS + 8)]
    await asyncio.sleep(0)
    assert await healthy(outbound) < resolving.HANGS_AFTER_SECONDS / 2
    await end(again)
    outbound.close()


async def test_a_name_that_hangs_takes_one_thread_however_often_it_is_asked_for(names: Hanging) -> None:
    outbound = Outbound(parse_networks("127.0.0.1"))
    hanging = [asyncio.create_task(outbound.resolve("hangs-0.example", 22)) for _ in range(2 * QUICK_LOOK_UPS)]
    await asyncio.sleep(0)
    assert await healthy(outbound) < resolving.HANGS_AFTER_SECONDS / 2
    assert names.looks["hangs-0.example"] == 1
    names.end.set()
    for outcome in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(outcome, NotResolved)
    outbound.close()


async def test_names_that_hung_lately_share_few_places_until_they_answer(
    names: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "HANGS_AFTER_SECONDS", 0.1)
    outbound = Outbound(parse_networks("127.0.0.1"))
    many = [f"hangs-{n}.example" for n in range(2 * SUSPECT_LOOK_UPS)]
    first = [asyncio.create_task(outbound.resolve(name, 22)) for name in many]
    async with asyncio.timeout(10):
        while sum(names.looks.values()) < len(many):
            await healthy(outbound, 1)
    await asyncio.wait(first, timeout=0.3)
    names.end.set()
    await asyncio.gather(*first, return_exceptions=True)
    names.end.clear()
    names.looks.clear()
    second = [asyncio.create_task(outbound.resolve(name, 22)) for name in many]
    await asyncio.wait(second, timeout=0.3)
    assert sum(names.looks.values()) == SUSPECT_LOOK_UPS
    names.end.set()
    await asyncio.gather(*second, return_exceptions=True)
    assert sum(names.looks.values()) == len(many)
    assert len(many) < MOST_THREADS
    outbound.close()
