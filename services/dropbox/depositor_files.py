"""What our delivery may do: leave files in the organizations' folders, complete or not at all, and read them back."""

import asyncio
import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import asyncssh
import structlog
from asyncssh.channel import SSHChannel

from services.dropbox.connections import Peer
from services.dropbox.door import Door
from services.dropbox.folders import Folder, Folders, OpenFile
from services.dropbox.names import TEST_PREFIX, depositor_place, is_partial_name, shown_path
from services.dropbox.recorder import Recorder
from services.dropbox.sftp import RefusingFiles, file_attributes, folder_attributes, name_of
from services.platform.errors import MeterpostError
from services.platform.metrics import DROPBOX_DEPOSITED

_WRITES = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
log = structlog.get_logger()


class DepositorFiles(RefusingFiles):
    """One session of delivery's. Paths are `/ORGANIZATION_ID/NAME`."""

    def __init__(
        self,
        channel: SSHChannel[bytes],
        peer: Peer,
        may_answer: asyncio.Event,
        *,
        threads: ThreadPoolExecutor,
        folders: Folders,
        recorder: Recorder,
        door: Door,
    ) -> None:
        super().__init__(channel, peer, may_answer, threads)
        self._folders = folders
        self._recorder = recorder
        self._door = door

    async def open_file(self, path: bytes, pflags: int) -> OpenFile:
        """Open a file to read it, or create one under a hidden name to write it."""
        folder, name = await self._file(path)
        if pflags == asyncssh.FXF_READ:
            return await self.blocking(folder.open, name)
        if pflags & _WRITES != _WRITES or pflags & asyncssh.FXF_APPEND:
            self.refuse("open")
        return await self.blocking(folder.create, name)

    async def names_in(self, path: bytes) -> Iterator[asyncssh.SFTPName]:
        """List an organization's files, those under way, too; or the organizations that have a folder."""
        place = depositor_place(path)
        if place is None or place.name is not None:
            _no_file()
        dots = [name_of(".", folder_attributes()), name_of("..", folder_attributes())]
        if place.organization_id is None:
            found = await self.blocking(self._folders.organization_ids)
            return iter([*dots, *(name_of(str(one), folder_attributes()) for one in found)])
        folder = await self._folder(place.organization_id)
        entries = await self.blocking(lambda: sorted(folder.entries()))
        return iter([*dots, *(name_of(entry.name, file_attributes(entry)) for entry in entries)])

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Tell of a file or a folder."""
        await self.ready()
        place = depositor_place(path)
        if place is None:
            _no_file()
        if place.organization_id is None:
            return folder_attributes()
        folder = await self._folder(place.organization_id)
        if place.name is None:
            return folder_attributes()
        entry = await self.blocking(folder.entry, place.name)
        if entry is None:
            _no_file()
        return file_attributes(entry)

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Tell the same: there are no links."""
        return await self.stat(path)

    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Put a file in place that is complete; never in the place of another."""
        await self.ready()
        folder, partial = await self._file(oldpath)
        target, name = await self._file(newpath)
        if folder is not target:
            self.refuse("rename")
        entry = await self.blocking(folder.put_in_place, partial, name)
        if name.startswith(TEST_PREFIX):
            return
        log.info("dropbox_deposited", organization_id=folder.organization_id, file=name, bytes=entry.size_bytes)
        DROPBOX_DEPOSITED.inc()
        self._recorder.deposited(folder.organization_id, name, entry.size_bytes)

    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Do the same: this one would replace what is there, and that is not offered."""
        await self.rename(oldpath, newpath)

    async def remove(self, path: bytes) -> None:
        """Remove what is not finished, and the file of a connection test; what customers are to fetch stays."""
        await self.ready()
        folder, name = await self._file(path)
        if not is_partial_name(name) and not name.startswith(TEST_PREFIX):
            self.refuse("remove")
        await self.blocking(folder.remove, name)

    async def realpath(self, path: bytes) -> bytes:
        """Return a path's plain form."""
        await self.ready()
        return shown_path(path)

    async def _file(self, path: bytes) -> tuple[Folder, str]:
        place = depositor_place(path)
        if place is None or place.organization_id is None or place.name is None:
            raise OSError(errno.ENOENT, "files lie in folders of organizations: /ORGANIZATION_ID/NAME")
        return await self._folder(place.organization_id), place.name

    async def _folder(self, organization_id: int) -> Folder:
        """Return an organization's folder; made where there is none, if somebody can log in to fetch from it."""
        found = await self.blocking(self._folders.find, organization_id)
        if found is not None:
            return found
        try:
            is_served = await self._door.organization_is_served(organization_id)
        except MeterpostError:
            raise asyncssh.SFTPFailure("the accounts cannot be looked up for now: try again") from None
        if not is_served:
            raise OSError(errno.ENOENT, f"organization {organization_id} has no account for its hosted folder")
        return await self.blocking(self._folders.ensure, organization_id)


def _no_file() -> NoReturn:
    raise OSError(errno.ENOENT, "there is no such file")
