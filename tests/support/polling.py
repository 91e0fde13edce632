"""Waiting for a condition with a deadline: the only way in which a test waits."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

_INTERVAL_S = 0.02


def eventually(probe: Callable[[], T], timeout_s: float = 10.0, *, because: str = "") -> T:
    """Call `probe` until what it returns is true, and return that; AssertionError after `timeout_s`.

    `because` says what was waited for; without it the probe's own name does.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(probe, timeout_s, because, found))
        time.sleep(_INTERVAL_S)
    return found


@overload
async def eventually_async(probe: Callable[[], Awaitable[T]], timeout_s: float = 10.0, *, because: str = "") -> T: ...
@overload
async def eventually_async(probe: Callable[[], T], timeout_s: float = 10.0, *, because: str = "") -> T: ...
async def eventually_async(probe: Callable[[], object], timeout_s: float = 10.0, *, because: str = "") -> object:
    """Do as `eventually`, for a plain or an async probe, leaving the event loop free in between."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(probe, timeout_s, because, found))
        await asyncio.sleep(_INTERVAL_S)


def _complaint(probe: object, timeout_s: float, because: str, found: object) -> str:
    awaited = because or getattr(probe, "__qualname__", repr(probe))
    return f"not within {timeout_s:g} s: {awaited} (last answer: {found!r})"
