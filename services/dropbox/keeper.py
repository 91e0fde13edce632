"""What has to be done from time to time: old files removed, idle sessions ended, records kept short."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncssh
import structlog

from services.dropbox import file_store
from services.dropbox.connections import Connections, Peer
from services.dropbox.door import Door
from services.dropbox.file_store import FoundFile
from services.dropbox.folders import Entry, Folder, Folders
from services.dropbox.names import TEST_PREFIX
from services.dropbox.recorder import Recorder
from services.platform.clock import Clock
from services.platform.errors import Unavailable
from services.platform.metrics import DROPBOX_REMOVED, DROPBOX_STORED, DROPBOX_STORED_FILES, DROPBOX_TURNED_AWAY
from services.platform.postgres import Patience, Pool, transaction, wait_or_stop

PARTIAL_KEPT = timedelta(hours=1)
"""What is under way longer than this, is not."""
RETENTION = "retention"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Times:
    """How long, and how often."""

    keep: timedelta
    record: timedelta
    idle_seconds: float
    look_seconds: float
    prune_seconds: float


@dataclass
class Keeper:
    """Looks round again and again."""

    pool: Pool
    patience: Patience
    clock: Clock
    folders: Folders
    recorder: Recorder
    connections: Connections
    door: Door
    times: Times
    _told: set[Peer] = field(default_factory=set)

    async def begin(self) -> None:
        """Before the first client: remove what earlier processes left half, and make the records agree with the disk.

        Raises Unavailable when the service is told to stop meanwhile.
        """
        pruned = await asyncio.to_thread(self._prune, timedelta(0))
        now = self.clock.now()

        async def agree() -> tuple[int, int]:
            async with transaction(self.pool) as connection:
                for organization_id, name in pruned.removed:
                    await connection.execute(file_store.REMOVED, organization_id, name, now, RETENTION)
                return await file_store.reconcile(connection, pruned.left, now)

        added, gone = await self.patience.postgres(agree)
        if added or gone:
            log.warning("dropbox_records_corrected", added=added, gone=gone)

    async def run(self) -> None:
        """Look round until the service is told to stop."""
        stopping, health, pruned_at = self.patience.stopping, self.patience.health, time.monotonic()
        while not stopping.is_set():
            self._end_idle()
            try:
                await self._look_into_tables()
                health.answered("PostgreSQL")
            except Unavailable as error:
                # Nobody can log in without it; those who are in are served, and old files go on being removed.
                health.waits_for("PostgreSQL")
                log.warning("server_away", server="PostgreSQL", error=str(error))
            if time.monotonic() - pruned_at >= self.times.prune_seconds:
                pruned = await asyncio.to_thread(self._prune, PARTIAL_KEPT)
                for organization_id, name in pruned.removed:
                    self.recorder.removed(organization_id, name, RETENTION)
                pruned_at = time.monotonic()
            health.progress()
            await wait_or_stop(stopping, self.times.look_seconds)

    async def _look_into_tables(self) -> None:
        await self.door.end_sessions()
        async with transaction(self.pool) as connection:
            await file_store.forget_removed(connection, self.clock.now(), self.times.record)

    def _end_idle(self) -> None:
        now = time.monotonic()
        peers = self.connections.peers()
        for peer in self._told.intersection(peers):
            peer.connection.abort()  # it was told, and does not even take that
        self._told.clear()
        for peer in peers:
            if peer.is_in and now - peer.active_at > self.times.idle_seconds:
                DROPBOX_TURNED_AWAY.labels("idle").inc()
                log.info("dropbox_session_ended", user=peer.user_name, address=peer.address, reason="idle")
                peer.end(asyncssh.DISC_BY_APPLICATION, "the session was idle for too long")
                self._told.add(peer)

    def _prune(self, partial_kept: timedelta) -> "_Pruned":
        """Remove what is old. Blocks."""
        now, total = self.clock.now().timestamp(), 0
        pruned = _Pruned([], [])
        for organization_id in self.folders.organization_ids():
            folder = self.folders.find(organization_id)
            for entry in [] if folder is None else list(folder.entries()):
                is_unfinished = entry.is_partial or entry.name.startswith(TEST_PREFIX)
                kept = partial_kept if is_unfinished else self.times.keep
                if now - entry.modified_at >= kept.total_seconds():
                    if folder is not None and _removed(folder, entry, "leftover" if is_unfinished else RETENTION):
                        pruned.removed.extend([] if is_unfinished else [(organization_id, entry.name)])
                    continue
                total += entry.size_bytes
                if not is_unfinished:
                    at = datetime.fromtimestamp(entry.modified_at, UTC)
                    pruned.left.append(FoundFile(organization_id, entry.name, at, entry.size_bytes))
            if folder is not None:
                folder.recount()
        DROPBOX_STORED.set(total)
        DROPBOX_STORED_FILES.set(len(pruned.left))
        return pruned


class _Pruned(NamedTuple):
    left: list[FoundFile]
    removed: list[tuple[int, str]]
    """Organizations and names of finished files."""


def _removed(folder: Folder, entry: Entry, why: str) -> bool:
    try:
        folder.remove(entry.name)
    except FileNotFoundError:
        return False
    except OSError as error:
        log.error("dropbox_prune_failed", file=entry.name, error=str(error))  # noqa: TRY400 - its words say it all
        return False
    DROPBOX_REMOVED.labels(why).inc()
    organization_id = folder.organization_id
    log.info("dropbox_removed", by=why, organization_id=organization_id, file=entry.name, bytes=entry.size_bytes)
    return True
