"""Pooled HTTPS connections, one pool for each set of trusted certificate authorities."""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from services.delivery.transports.base import Deadlines
from services.delivery.transports.checked_connector import checked_connector
from services.platform.outbound import Outbound

MAX_IDLE_SESSIONS = 200
# Below the idle time after which common servers close a connection (Node.js: 5 s): a request that meets such a
# closing fails and has to be repeated.
KEEP_ALIVE_SECONDS = 4.0


@dataclass(slots=True)
class _Lent:
    session: aiohttp.ClientSession
    users: int = 0


class TlsSessions:
    """Sessions by the authorities they trust. The least recently used are closed when they become too many."""

    def __init__(self, deadlines: Deadlines, outbound: Outbound, *, user_agent: str) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=deadlines.total.total_seconds(), sock_connect=deadlines.connect.total_seconds()
        )
        self._outbound = outbound
        self._user_agent = user_agent
        self._sessions: OrderedDict[str | None, _Lent] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @contextmanager
    def lend(self, ca_pem: str | None) -> Iterator[aiohttp.ClientSession]:
        """Lend a session that trusts the authorities in `ca_pem`, or the system's where it is None."""
        lent = self._sessions.get(ca_pem)
        if lent is None:
            lent = self._sessions[ca_pem] = _Lent(self._open(ca_pem))
        self._sessions.move_to_end(ca_pem)
        lent.users += 1
        try:
            yield lent.session
        finally:
            lent.users -= 1
            self._shrink()

    async def aclose(self) -> None:
        """Close every session."""
        sessions, self._sessions = self._sessions, OrderedDict()
        await asyncio.gather(*(lent.session.close() for lent in sessions.values()), *self._closing)

    def _open(self, ca_pem: str | None) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cadata=ca_pem)
        # How many attempts run at once is bounded by the callers, overall and for each destination.
        connector = checked_connector(self._outbound, context, limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    def _shrink(self) -> None:
        if len(self._sessions) <= MAX_IDLE_SESSIONS:
            return
        for ca_pem, lent in self._sessions.items():
            if not lent.users:
                del self._sessions[ca_pem]
                task = asyncio.create_task(lent.session.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                return
