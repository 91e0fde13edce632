"""Pooled HTTPS connections, one pool for each set of trusted authorities and each certificate of our own."""

import asyncio
import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp

from services.delivery.transports.base import Deadlines
from services.delivery.transports.checked_connector import checked_connector
from services.platform.outbound import Outbound

MAX_IDLE_SESSIONS = 200
# Below the idle time after which common servers close a connection (Node.js: 5 s): a request that meets such a
# closing fails and has to be repeated.
KEEP_ALIVE_SECONDS = 4.0


class TlsSide(NamedTuple):
    """Whom we trust (None: the system's authorities) and how we show who we are (None: not at all)."""

    ca_pem: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    def context(self) -> ssl.SSLContext:
        """Return what a connection needs. Blocks for a moment; raises ssl.SSLError or ValueError for bad PEM."""
        context = ssl.create_default_context(cadata=self.ca_pem)
        if self.client_certificate is not None and self.client_key is not None:
            _load_chain(context, f"{self.client_key.strip()}\n{self.client_certificate}".encode("ascii"))
        return context


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and its certificate; OpenSSL's interface takes files only, so one that nobody else can open."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("meterpost", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_passphrase)
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "client.pem"
        file.touch(mode=0o600)
        file.write_bytes(pem)
        context.load_cert_chain(file, password=_no_passphrase)


def _no_passphrase() -> str:
    """Keep OpenSSL from asking the terminal."""
    raise ValueError("a client key must have no passphrase")


@dataclass(slots=True)
class _Lent:
    session: aiohttp.ClientSession
    users: int = 0


class TlsSessions:
    """Sessions by their side of TLS. The least recently used are closed when they become too many."""

    def __init__(self, deadlines: Deadlines, outbound: Outbound, *, user_agent: str) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=deadlines.total.total_seconds(), sock_connect=deadlines.connect.total_seconds()
        )
        self._outbound = outbound
        self._user_agent = user_agent
        self._sessions: OrderedDict[TlsSide, _Lent] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @contextmanager
    def lend(self, side: TlsSide) -> Iterator[aiohttp.ClientSession]:
        """Lend a session that connects with this side of TLS."""
        lent = self._sessions.get(side)
        if lent is None:
            lent = self._sessions[side] = _Lent(self._open(side))
        self._sessions.move_to_end(side)
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

    def _open(self, side: TlsSide) -> aiohttp.ClientSession:
        context = side.context()
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
        for side, lent in self._sessions.items():
            if not lent.users:
                del self._sessions[side]
                task = asyncio.create_task(lent.session.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                return
