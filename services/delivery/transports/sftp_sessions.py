"""SFTP sessions: opened to servers whose key is approved, kept for the next part, closed when idle."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import socket
from typing import Any

import asyncssh

from services.core.file_transfer import HOST_KEY_TYPES, SftpServer
from services.delivery.transports.base import Means
from services.delivery.transports.idle_sessions import IdleSessions
from services.platform.errors import UserError
from services.platform.ssh_algorithms import CIPHERS, KEY_EXCHANGES, MACS, SIGNATURES

# A key is one thing, the signatures made with it are several.
_SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}

# It reports every connection with its user; what is of interest is in our own events.
asyncssh.set_log_level("ERROR")


class HostKeyRefused(Exception):  # noqa: N818 - a state of the destination
    """The server showed a key that is not approved."""

    def __init__(self, shown: str) -> None:
        super().__init__("the host key is not approved")
        self.shown = shown
        """As `ssh-ed25519 AAAA…`."""


@dataclass(eq=False, slots=True)
class Session:
    """A connection that is logged in, with its SFTP channel."""

    connection: asyncssh.SSHClientConnection
    files: asyncssh.SFTPClient
    was_used: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the connection still stands, as far as we know."""
        return not self.connection.is_closed()

    def close(self) -> None:
        """End it at once."""
        self.connection.abort()


class SftpSessions:
    """Sessions by server and account."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._idle: IdleSessions[SftpServer, Session] = IdleSessions()

    @asynccontextmanager
    async def lend(self, server: SftpServer, *, fresh: bool = False) -> AsyncIterator[Session]:
        """Lend a session, an idle one unless `fresh`; it is kept when nothing was raised. Raises as `log_in`."""
        session = None if fresh else self._idle.take(server)
        if session is None:
            async with asyncio.timeout(self._means.deadlines.connect.total_seconds()):
                session = await self._open(server)
        try:
            yield session
        except BaseException:
            session.close()
            raise
        self._idle.keep(server, session)

    async def aclose(self) -> None:
        """Close every idle session."""
        await asyncio.gather(*(session.connection.wait_closed() for session in self._idle.close()))

    async def _open(self, server: SftpServer) -> Session:
        made = await self._means.outbound.connect(server.host, server.port)
        return await log_in(server, made)


async def log_in(
    server: SftpServer, connected: socket, on_trusted: Callable[[str], None] = lambda _key: None
) -> Session:
    """Return a session over a connected socket, which is closed where none comes about.

    `on_trusted` hears the host key once it is known to be an approved one. Raises HostKeyRefused, UserError for a
    private key that is none, asyncssh.Error, OSError. No deadline of its own.
    """
    client = _Client(server, on_trusted)
    try:
        options = _options(server)
        connection, _ = await asyncssh.create_connection(lambda: client, sock=connected, **options)
    except asyncssh.HostKeyNotVerifiable:
        raise HostKeyRefused(client.shown) from None
    except BaseException:
        if not client.has_begun:
            connected.close()  # otherwise it is asyncssh's, which has closed it
        raise
    try:
        return Session(connection, await connection.start_sftp_client())
    except BaseException:
        connection.abort()
        raise


class _Client(asyncssh.SSHClient):
    """Accepts the approved host keys and no other; remembers what was shown."""

    def __init__(self, server: SftpServer, on_trusted: Callable[[str], None]) -> None:
        self._approved = frozenset(server.host_keys)
        self._on_trusted = on_trusted
        self.shown = ""
        self.has_begun = False

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.has_begun = True

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])
        if self.shown not in self._approved:
            return False
        self._on_trusted(self.shown)
        return True


def _options(server: SftpServer) -> dict[str, Any]:
    """Return asyncssh's options: nothing of the machine we run on plays a part, neither files nor agents."""
    options: dict[str, Any] = {
        "host": server.host,
        "port": server.port,
        "username": server.user,
        "config": None,
        "agent_path": None,
        "client_keys": None,
        "known_hosts": ([], [], []),
        "x509_trusted_certs": None,
        "gss_host": None,
        "host_based_auth": False,
        "kex_algs": KEY_EXCHANGES,
        "encryption_algs": CIPHERS,
        "mac_algs": MACS,
        "signature_algs": SIGNATURES,
        "compression_algs": ("none",),
        "keepalive_interval": 15,
        "login_timeout": 0,
    }
    if server.private_key is not None:
        options["client_keys"] = [private_key(server.private_key)]
        options["preferred_auth"] = ("publickey",)
    else:
        options["password"] = server.password
        options["preferred_auth"] = ("password", "keyboard-interactive")
    # A server has keys of several types and shows the first that we ask for: the approved types come first.
    kinds = dict.fromkeys([*(line.split()[0] for line in server.host_keys), *HOST_KEY_TYPES])
    options["server_host_key_algs"] = [name for kind in kinds for name in _SIGNATURES.get(kind, (kind,))]
    return options


def private_key(text: str) -> asyncssh.SSHKey:
    """Return a private key. Raises UserError, which tells nothing of it."""
    try:
        return asyncssh.import_private_key(text)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
        raise UserError("the job's private key cannot be read: have a new one made, then resume the job") from None
