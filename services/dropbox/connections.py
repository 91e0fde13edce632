"""The connections there are, and how many may be: in total, before they are logged in, and for one account."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import asyncssh

from services.dropbox.throttle import network_of
from services.platform.metrics import DROPBOX_CONNECTIONS

Role = Literal["customer", "depositor"]


@dataclass(eq=False)
class Peer:
    """Whoever is at the other end of a connection."""

    connection: asyncssh.SSHServerConnection
    address: str
    user_name: str = ""
    role: Role = "customer"
    organization_id: int = 0
    """Of a customer that is logged in; the depositor has none."""
    credentials_version: int = 0
    is_in: bool = False
    channels: int = 0
    active_at: float = field(default_factory=time.monotonic)
    """When it asked for something last, or was busy, by the monotonic clock."""

    @property
    def network(self) -> str:
        """What its address counts as."""
        return network_of(self.address)

    def is_active(self) -> None:
        """Note that it asked for something."""
        self.active_at = time.monotonic()

    def end(self, code: int, reason: str) -> None:
        """Tell it why, and end the connection."""
        self.connection.disconnect(code, reason)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections may be."""

    total: int
    per_account: int
    logins_per_address: int


class Connections:
    """All of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._peers: set[Peer] = set()
        self._arriving: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()

    def peers(self) -> list[Peer]:
        """Return them as they are now."""
        return list(self._peers)

    def arrives(self, peer: Peer) -> str | None:
        """Take a new connection in; returns the limit that forbids it."""
        if len(self._peers) >= self._limits.total:
            return "total"
        if self._arriving[peer.network] >= self._limits.logins_per_address:
            return "logins_per_address"
        self._peers.add(peer)
        self._arriving[peer.network] += 1
        self._show()
        return None

    def logs_in(self, peer: Peer) -> str | None:
        """Note that a connection is logged in; returns the limit that forbids it."""
        if peer not in self._peers or peer.is_in:
            return None
        if peer.role == "customer" and self._inside[peer.user_name] >= self._limits.per_account:
            return "per_account"
        self._leave(self._arriving, peer.network)
        self._inside[peer.user_name] += 1
        peer.is_in = True
        self._show()
        return None

    def leaves(self, peer: Peer) -> None:
        """Note that a connection has ended."""
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        self._leave(self._inside if peer.is_in else self._arriving, peer.user_name if peer.is_in else peer.network)
        self._show()

    @staticmethod
    def _leave(counted: Counter[str], key: str) -> None:
        counted[key] -= 1
        if counted[key] <= 0:
            del counted[key]

    def _show(self) -> None:
        inside = sum(self._inside.values())
        DROPBOX_CONNECTIONS.labels("logged_in").set(inside)
        DROPBOX_CONNECTIONS.labels("arriving").set(len(self._peers) - inside)
