"""One connection: who it is, what it may open. Only SFTP is ever offered, on a few channels."""

import asyncio
import time
from collections.abc import Callable

import asyncssh
import structlog
from asyncssh.channel import SSHChannel
from asyncssh.stream import SSHServerStreamSession

from services.core.file_transfer import HOSTED_USER
from services.dropbox.account_store import Account
from services.dropbox.connections import Peer
from services.dropbox.door import Door
from services.dropbox.host_keys import public_line
from services.dropbox.throttle import delay_seconds
from services.platform.errors import MeterpostError
from services.platform.metrics import DROPBOX_LOGINS, DROPBOX_REFUSED, DROPBOX_TURNED_AWAY

SFTP_VERSION = 3
MAX_CHANNELS = 4
MAX_PASSWORDS = 6
MAX_KEYS = 30
log = structlog.get_logger()

# It reports every connection with whatever was given as the user's name; what is of interest is in our own events.
asyncssh.set_log_level("ERROR")

FilesOf = Callable[[SSHChannel[bytes], Peer, asyncio.Event], asyncssh.SFTPServer]


class Login(asyncssh.SSHServer):
    """Judges one client, and gives it SFTP."""

    def __init__(self, door: Door, files: FilesOf, *, failure_delay_seconds: float) -> None:
        self._door = door
        self._files = files
        self._failure_delay_seconds = failure_delay_seconds
        self._peer: Peer | None = None
        self._account: Account | None = None
        self._is_depositor = False
        self._how = ""
        self._passwords = 0
        self._keys = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Take the connection in, or end it where there are too many."""
        address = str((conn.get_extra_info("peername") or ("unknown",))[0])
        self._peer = Peer(conn, address)
        limit = self._door.connections.arrives(self._peer)
        if limit is not None:
            DROPBOX_TURNED_AWAY.labels(limit).inc()
            log.warning("dropbox_turned_away", limit=limit, address=address)
            self._peer = None
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its place to another."""
        if self._peer is not None:
            self._door.connections.leaves(self._peer)

    async def begin_auth(self, username: str) -> bool:
        """Look who it may be; every name is asked for a proof."""
        self._is_depositor = username == HOSTED_USER
        self._account = None
        if not self._is_depositor:
            try:
                self._account = await self._door.account(username)
            except MeterpostError as error:
                DROPBOX_LOGINS.labels("customer", "unavailable").inc()
                log.warning("dropbox_login_unavailable", error=str(error))
                self._end(asyncssh.DISC_SERVICE_NOT_AVAILABLE, "logins are not possible for now: try again later")
        return True

    def auth_completed(self) -> None:
        """Let it in."""
        peer = self._peer
        if peer is None:
            return
        peer.is_active()
        if self._is_depositor:
            peer.user_name, peer.role = HOSTED_USER, "depositor"
        elif self._account is not None:
            peer.user_name = self._account.user_name
            peer.organization_id = self._account.organization_id
            peer.credentials_version = self._account.credentials_version
        self._door.logs_in(peer, self._how)

    def password_auth_supported(self) -> bool:
        """Offer it to everybody: what is offered must not tell which accounts there are."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Offer it to everybody."""
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        """Judge a password; a refusal is held back for a while."""
        peer = self._peer
        if peer is None:
            return False
        begun = time.monotonic()
        self._passwords += 1
        self._how = "password"
        if await self._door.is_right(peer, self._account, password, begun):
            return True
        held = delay_seconds(self._failure_delay_seconds, self._passwords)
        await asyncio.sleep(max(0.0, held - (time.monotonic() - begun)))
        if self._passwords >= MAX_PASSWORDS:
            self._end(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many refused passwords")
        return False

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Judge a key; that the client has its private half is proved to asyncssh."""
        self._keys += 1
        if self._keys > MAX_KEYS:
            self._end(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many refused keys")
            return False
        is_depositors = self._door.is_depositor_key(key)
        if self._is_depositor:
            is_right = is_depositors
        else:
            # Delivery's key opens no customer's account, even where somebody added it to one.
            is_right = self._account is not None and public_line(key) in self._account.public_keys and not is_depositors
        if is_right:
            self._how = f"key {key.get_fingerprint()}"
        return is_right

    def validate_host_based_user(self, username: str, client_host: str, client_username: str) -> bool:
        """Trust no machine."""
        return False

    def session_requested(
        self,
    ) -> "tuple[asyncssh.SSHServerChannel[bytes], asyncssh.SSHServerSession[bytes]] | bool":
        """Give a channel, on which nothing but SFTP can be started."""
        peer = self._peer
        if peer is None or not peer.is_in or peer.channels >= MAX_CHANNELS:
            return False
        channel = peer.connection.create_server_channel(encoding=None)
        # asyncssh keeps every variable that a client sets, however many.
        vars(channel)["_env"] = _NothingKept()
        return channel, _SftpSession(peer, self._files)

    def _end(self, code: int, reason: str) -> None:
        if self._peer is not None:
            self._peer.end(code, reason)


class _NothingKept(dict[bytes, bytes]):
    """A client's environment: never looked at, so never kept."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        pass


class _SftpSession(SSHServerStreamSession[bytes]):
    """Starts the SFTP server and tells it when the client reads too slowly."""

    def __init__(self, peer: Peer, files: FilesOf) -> None:
        super().__init__(None, self._start, sftp_version=SFTP_VERSION)
        self._peer = peer
        self._files = files
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        peer.channels += 1

    def _start(self, channel: SSHChannel[bytes]) -> asyncssh.SFTPServer:
        return self._files(channel, self._peer, self._may_answer)

    def pty_requested(self, term_type: str, term_size: object, term_modes: object) -> bool:
        """Refuse a terminal."""
        return False

    def shell_requested(self) -> bool:
        """Refuse a shell."""
        return self._refuse("shell")

    def exec_requested(self, command: str) -> bool:
        """Refuse every command, `scp` as well."""
        return self._refuse("exec")

    def subsystem_requested(self, subsystem: str) -> bool:
        """Accept SFTP alone."""
        return subsystem == "sftp" or self._refuse("subsystem")

    def pause_writing(self) -> None:
        """Hold answers back: the client does not take those that were given."""
        super().pause_writing()
        self._may_answer.clear()

    def resume_writing(self) -> None:
        """Answer again."""
        super().resume_writing()
        self._may_answer.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the channel's place to another."""
        super().connection_lost(exc)
        self._may_answer.set()
        self._peer.channels -= 1

    def _refuse(self, what: str) -> bool:
        DROPBOX_REFUSED.labels(self._peer.role, what).inc()
        log.warning("dropbox_refused", request=what, user=self._peer.user_name, address=self._peer.address)
        return False
