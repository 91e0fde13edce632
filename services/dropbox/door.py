"""Who is let in, and as what. Answers take as long for accounts that do not exist as for those that do."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import structlog

from services.dropbox import account_store
from services.dropbox.account_store import Account
from services.dropbox.connections import Connections, Peer
from services.dropbox.host_keys import public_line
from services.dropbox.recorder import Recorder
from services.dropbox.throttle import Failures
from services.platform.errors import UserError
from services.platform.metrics import DROPBOX_LOGINS, DROPBOX_TURNED_AWAY
from services.platform.passwords import MAX_LENGTH, is_password
from services.platform.postgres import Pool, transaction

HASHING_THREADS = 2
_REMEMBERED = 10_000
log = structlog.get_logger()


class Door:
    """Judges passwords and keys."""

    def __init__(
        self,
        pool: Pool,
        recorder: Recorder,
        connections: Connections,
        *,
        depositor_keys: Mapping[str, str],
        by_address: Failures,
        by_account: Failures,
    ) -> None:
        self._pool = pool
        self._recorder = recorder
        self.connections = connections
        self._depositor_keys = depositor_keys
        self._by_address = by_address
        self._by_account = by_account
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        # Each takes some 19 MiB and all of a processor for a moment.
        self._hashing = ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="password")

    def close(self) -> None:
        """Judge no more."""
        self._hashing.shutdown(wait=False, cancel_futures=True)

    async def warm_up(self) -> None:
        """Make sure that the first unknown account takes no longer than the next."""
        await asyncio.get_running_loop().run_in_executor(self._hashing, is_password, None, "")

    async def account(self, user_name: str) -> Account | None:
        """Return the account that may log in by this name. Raises Unavailable."""
        async with transaction(self._pool) as connection:
            return await account_store.find_account(connection, user_name[:100].replace("\0", "?"))

    def is_depositor_key(self, key: asyncssh.SSHKey) -> bool:
        """Tell whether the key is one of delivery's."""
        return public_line(key) in self._depositor_keys

    async def is_right(self, peer: Peer, account: Account | None, password: str, now: float) -> bool:
        """Judge a password; `now`: seconds of the monotonic clock."""
        place = (peer.network, account.user_name if account is not None else "")
        if self._is_blocked(place, account, now):
            DROPBOX_LOGINS.labels("customer", "blocked").inc()
            log.warning("dropbox_login_blocked", user=place[1] or None, address=peer.address)
            return False
        hashed = account.password_hash if account is not None else None
        judged = password if len(password) <= MAX_LENGTH else ""
        is_right = await asyncio.get_running_loop().run_in_executor(self._hashing, is_password, hashed, judged)
        if is_right and judged:
            return True
        self._by_address.note(peer.network, now)
        if account is not None:
            self._by_account.note(account.user_name, now)
        DROPBOX_LOGINS.labels("customer", "refused").inc()
        # What was typed as an unknown name is not shown: it may well be a password.
        log.warning("dropbox_login_refused", user=place[1] or None, address=peer.address, by="password")
        return False

    def _is_blocked(self, place: tuple[str, str], account: Account | None, now: float) -> bool:
        if self._by_address.are_too_many(place[0], now):
            return True
        # Who logged in from there before is let try, so that nobody can lock an account's owner out by guessing.
        return account is not None and place not in self._known and self._by_account.are_too_many(place[1], now)

    def logs_in(self, peer: Peer, how: str) -> None:
        """Take in who has proved to be who they are; ends the connection where a limit forbids it."""
        limit = self.connections.logs_in(peer)
        if limit is not None:
            DROPBOX_TURNED_AWAY.labels(limit).inc()
            log.warning("dropbox_turned_away", limit=limit, user=peer.user_name, address=peer.address)
            peer.end(asyncssh.DISC_TOO_MANY_CONNECTIONS, "the account has too many connections open")
            return
        DROPBOX_LOGINS.labels(peer.role, "accepted").inc()
        log.info(
            "dropbox_logged_in",
            user=peer.user_name,
            role=peer.role,
            organization_id=peer.organization_id or None,
            address=peer.address,
            by=how,
        )
        if peer.role == "customer":
            place = (peer.network, peer.user_name)
            self._known[place] = None
            self._known.move_to_end(place)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            self._by_account.forget(peer.user_name)
            self._recorder.logged_in(peer.user_name, peer.address)

    async def end_sessions(self) -> None:
        """End the sessions of accounts that have been disabled, or whose password or key was taken away.

        Raises Unavailable.
        """
        inside = [peer for peer in self.connections.peers() if peer.is_in and peer.role == "customer"]
        if not inside:
            return
        async with transaction(self._pool) as connection:
            found = await account_store.versions(connection, sorted({peer.user_name for peer in inside}))
        for peer in inside:
            if found.get(peer.user_name) != peer.credentials_version:
                log.info("dropbox_session_ended", user=peer.user_name, address=peer.address, reason="credentials")
                peer.end(asyncssh.DISC_BY_APPLICATION, "the account's credentials were changed: log in again")

    async def organization_is_served(self, organization_id: int) -> bool:
        """Tell whether somebody could fetch what is left for an organization. Raises Unavailable."""
        async with transaction(self._pool) as connection:
            return await account_store.has_account(connection, organization_id)


def read_depositor_keys(file: Path | None) -> dict[str, str]:
    """Return the public keys of a file, each with its comment. Raises UserError that names the line. Blocks."""
    if file is None:
        return {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE: {file} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            try:
                key = asyncssh.import_public_key(line)
            except (asyncssh.KeyImportError, ValueError):
                raise UserError(
                    f"METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE: line {number} of {file} is no public key such as "
                    "`ssh-ed25519 AAAA… comment` (options are not supported)"
                ) from None
            found[public_line(key)] = (key.get_comment() or "") if key.has_comment() else ""
    return found
