"""What a customer sees: the finished files of the own organization, to list, to fetch and to remove."""

import asyncio
import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import asyncssh
import structlog
from asyncssh.channel import SSHChannel

from services.dropbox.connections import Peer
from services.dropbox.folders import Folder, Folders, OpenFile
from services.dropbox.names import customer_place, shown_path
from services.dropbox.recorder import Recorder
from services.dropbox.sftp import RefusingFiles, file_attributes, folder_attributes, name_of
from services.platform.metrics import DROPBOX_FETCHED, DROPBOX_REMOVED

log = structlog.get_logger()


class CustomerFiles(RefusingFiles):
    """One customer's session."""

    def __init__(
        self,
        channel: SSHChannel[bytes],
        peer: Peer,
        may_answer: asyncio.Event,
        *,
        threads: ThreadPoolExecutor,
        folders: Folders,
        recorder: Recorder,
    ) -> None:
        super().__init__(channel, peer, may_answer, threads)
        self._folders = folders
        self._recorder = recorder

    async def open_file(self, path: bytes, pflags: int) -> OpenFile:
        """Open a finished file to read it."""
        if pflags != asyncssh.FXF_READ:
            self.refuse("write")
        name = self._name(path)
        return await self.blocking((await self._folder()).open, name)

    def closed(self, opened: OpenFile) -> None:
        """Note a file that was fetched to its end."""
        log.info(
            "dropbox_read",
            user=self.peer.user_name,
            organization_id=self.peer.organization_id,
            file=opened.name,
            bytes=opened.read_bytes,
            complete=opened.was_fetched,
            address=self.peer.address,
        )
        if opened.was_fetched:
            DROPBOX_FETCHED.inc()
            self._recorder.fetched(self.peer.organization_id, opened.name, self.peer.user_name)

    async def names_in(self, path: bytes) -> Iterator[asyncssh.SFTPName]:
        """List the finished files."""
        place = customer_place(self.peer.organization_id, path)
        if place is None or place.name is not None:
            raise OSError(errno.ENOENT, "there is one folder only, /")
        folder = await self._folder()
        entries = await self.blocking(lambda: sorted(one for one in folder.entries() if not one.is_partial))
        names = [name_of(".", folder_attributes()), name_of("..", folder_attributes())]
        return iter([*names, *(name_of(entry.name, file_attributes(entry)) for entry in entries)])

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Tell of a finished file, or of the folder."""
        await self.ready()
        place = customer_place(self.peer.organization_id, path)
        if place is not None and place.name is None:
            return folder_attributes()
        name = self._name(path)
        entry = await self.blocking((await self._folder()).entry, name)
        if entry is None:
            _no_file()
        return file_attributes(entry)

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Tell the same: there are no links."""
        return await self.stat(path)

    async def remove(self, path: bytes) -> None:
        """Remove a finished file."""
        await self.ready()
        name = self._name(path)
        folder = await self._folder()
        entry = await self.blocking(folder.remove, name)
        peer = self.peer
        log.info(
            "dropbox_removed",
            by=peer.user_name,
            organization_id=peer.organization_id,
            file=name,
            bytes=entry.size_bytes,
            address=peer.address,
        )
        DROPBOX_REMOVED.labels("customer").inc()
        self._recorder.removed(peer.organization_id, name, peer.user_name)

    async def realpath(self, path: bytes) -> bytes:
        """Return a path's plain form."""
        await self.ready()
        return shown_path(path)

    async def _folder(self) -> Folder:
        return await self.blocking(self._folders.ensure, self.peer.organization_id)

    def _name(self, path: bytes) -> str:
        place = customer_place(self.peer.organization_id, path)
        if place is None or place.name is None:
            _no_file()
        return place.name


def _no_file() -> NoReturn:
    raise OSError(errno.ENOENT, "there is no such file")
