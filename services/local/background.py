"""Blocking work in threads that the end of the process need not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from time import monotonic
from typing import TypeVar

T = TypeVar("T")


class Background:
    """Runs blocking calls beside the event loop, each in a daemon thread.

    The loop's own threads do not do: at its end it waits for them, for minutes if it must.
    """

    def __init__(self) -> None:
        self._threads: list[Thread] = []

    async def call(self, work: Callable[[], T]) -> T:
        """Return or raise as `work` does. A cancellation leaves the thread to itself."""
        outcome: Future[T] = Future()
        # From now on the outcome cannot be cancelled from outside: the thread may always set it.
        outcome.set_running_or_notify_cancel()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised again where the call is awaited
                outcome.set_exception(error)

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = Thread(target=run, name="background", daemon=True)
        self._threads.append(thread)
        thread.start()
        return await asyncio.wrap_future(outcome)

    def join(self, timeout_s: float) -> None:
        """Wait until every call has ended, at most so long."""
        deadline = monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
