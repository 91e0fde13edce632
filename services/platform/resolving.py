"""Looking up names, so that those whose name servers hang do not cost other names their thread and their deadline."""

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Addresses: TypeAlias = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]]

# A look-up without an answer holds its thread for 10 to 30 s, and nothing ends it sooner.
QUICK_LOOK_UPS = 32
SUSPECT_LOOK_UPS = 16
MOST_THREADS = 256
"""Made only as they are needed."""
HANGS_AFTER_SECONDS = 2.0
"""A look-up that takes so long gives its place to the next; its thread stays with it until the resolver gives up."""
SUSPECT_FOR_SECONDS = 60.0
"""For so long after such a look-up, the name shares the places of the suspect ones."""
MOST_SUSPECTS = 10_000


@dataclass(eq=False, slots=True)
class _LookUp:
    host: str
    port: int
    is_suspect: bool
    found: "Future[Addresses]" = field(default_factory=Future)
    started: float = 0.0
    has_place: bool = False


class Resolver:
    """Looks names up in threads; whoever asks for a name that is being looked up waits for the same answer."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="resolve")
        self._lock = threading.Lock()
        self._places = {False: QUICK_LOOK_UPS, True: SUSPECT_LOOK_UPS}
        self._waiting: dict[bool, deque[_LookUp]] = {False: deque(), True: deque()}
        self._by_host: dict[str, _LookUp] = {}
        self._running: set[_LookUp] = set()
        self._suspect_until: dict[str, float] = {}
        self._is_closed = False

    def close(self) -> None:
        """Take no more names; does not wait for look-ups that hang."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look_up(self, host: str, port: int) -> Addresses:
        """Return what the resolver says. Raises OSError and UnicodeError; the deadline is the caller's."""
        with self._lock:
            if self._is_closed:
                raise OSError("the process is about to end")
            look_up = self._by_host.get(host)
            if look_up is None:
                is_suspect = self._suspect_until.get(host, 0.0) > time.monotonic()
                look_up = self._by_host[host] = _LookUp(host, port, is_suspect)
                self._waiting[is_suspect].append(look_up)
            self._start()
        found = asyncio.wrap_future(look_up.found)
        # Whoever gives up leaves it to the others; its outcome is nobody's then.
        found.add_done_callback(lambda done: done.cancelled() or done.exception())
        while True:
            done, _pending = await asyncio.wait({found}, timeout=HANGS_AFTER_SECONDS / 4)
            if done:
                return found.result()
            with self._lock:
                self._start()

    def _start(self) -> None:
        """Take places from look-ups that hang, and give what is free to those that wait. Holds the lock."""
        now = time.monotonic()
        for look_up in self._running:
            if look_up.has_place and not look_up.is_suspect and now - look_up.started > HANGS_AFTER_SECONDS:
                self._leave_place(look_up)
                self._suspect(look_up.host, now)
        for is_suspect, waiting in self._waiting.items():
            while waiting and self._places[is_suspect] and len(self._running) < MOST_THREADS and not self._is_closed:
                look_up = waiting.popleft()
                look_up.started, look_up.has_place = now, True
                self._places[is_suspect] -= 1
                self._running.add(look_up)
                self._threads.submit(self._run, look_up)

    def _run(self, look_up: _LookUp) -> None:
        """Look a name up, in a thread."""
        failure: Exception | None = None
        addresses: Addresses = ()
        try:
            addresses = socket.getaddrinfo(look_up.host, look_up.port, type=socket.SOCK_STREAM)
        except Exception as error:  # noqa: BLE001 - the caller's, whatever it is
            failure = error
        with self._lock:
            now = time.monotonic()
            self._running.discard(look_up)
            self._by_host.pop(look_up.host, None)
            if look_up.has_place:
                self._leave_place(look_up)
            if now - look_up.started > HANGS_AFTER_SECONDS:
                self._suspect(look_up.host, now)
            else:
                self._suspect_until.pop(look_up.host, None)
            self._start()
        if failure is None:
            look_up.found.set_result(addresses)
        else:
            look_up.found.set_exception(failure)

    def _leave_place(self, look_up: _LookUp) -> None:
        look_up.has_place = False
        self._places[look_up.is_suspect] += 1

    def _suspect(self, host: str, now: float) -> None:
        self._suspect_until.pop(host, None)
        self._suspect_until[host] = now + SUSPECT_FOR_SECONDS
        if len(self._suspect_until) > MOST_SUSPECTS:
            del self._suspect_until[next(iter(self._suspect_until))]
