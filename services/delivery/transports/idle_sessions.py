"""Sessions that are kept for the next part, by server and account, and closed when nobody needs them for a while."""

import asyncio
from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

# Below the idle times after which servers and firewalls usually drop a connection.
IDLE_SECONDS = 30.0
MAX_IDLE_SESSIONS = 200


class Keepable(Protocol):
    """What can be kept."""

    was_used: bool
    """Whether it was kept before: then that it broke says nothing of the server."""

    @property
    def is_open(self) -> bool:
        """Whether the connection still stands, as far as we know."""
        ...

    def close(self) -> None:
        """End it at once."""
        ...


ServerT = TypeVar("ServerT", bound=Hashable)
SessionT = TypeVar("SessionT", bound=Keepable)


class IdleSessions(Generic[ServerT, SessionT]):
    """Idle sessions; belongs to the event loop."""

    def __init__(self) -> None:
        self._idle: defaultdict[ServerT, list[tuple[SessionT, asyncio.TimerHandle]]] = defaultdict(list)
        self._count = 0

    def take(self, server: ServerT) -> SessionT | None:
        """Return a session to the server that still stands, the one used last; it is the caller's."""
        while sessions := self._idle.get(server):
            session, timer = sessions.pop()
            if not sessions:
                del self._idle[server]
            self._count -= 1
            timer.cancel()
            if session.is_open:
                return session
            session.close()
        return None

    def keep(self, server: ServerT, session: SessionT) -> None:
        """Keep a session for a while, unless there are too many."""
        if not session.is_open or self._count >= MAX_IDLE_SESSIONS:
            session.close()
            return
        session.was_used = True
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire, server, session)
        self._idle[server].append((session, timer))
        self._count += 1

    def close(self) -> list[SessionT]:
        """Close every idle session; return them."""
        idle = [entry for sessions in self._idle.values() for entry in sessions]
        self._idle.clear()
        self._count = 0
        for session, timer in idle:
            timer.cancel()
            session.close()
        return [session for session, _timer in idle]

    def _expire(self, server: ServerT, session: SessionT) -> None:
        kept = [entry for entry in self._idle[server] if entry[0] is not session]
        self._count -= len(self._idle[server]) - len(kept)
        if kept:
            self._idle[server] = kept
        else:
            del self._idle[server]
        session.close()
