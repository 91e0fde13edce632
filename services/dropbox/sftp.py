"""SFTP as far as it is offered to anybody: every request that is not named here is refused.

asyncssh handles one request of a channel at a time. An answer is begun only when the client has taken most of those
before, so that a client that asks and does not read costs no memory.
"""

import asyncio
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn, ParamSpec, TypeVar, cast
from weakref import WeakSet

import asyncssh
import structlog
from asyncssh.channel import SSHChannel

from services.dropbox.connections import Peer
from services.dropbox.folders import Entry, OpenFile
from services.platform.metrics import DROPBOX_BYTES, DROPBOX_REFUSED

MAX_READ_BYTES = 256 * 1024
MAX_OPEN_FILES = 64
MAX_OPEN_LISTS = 8
_LARGEST_OFFSET = 2**62

P = ParamSpec("P")
ResultT = TypeVar("ResultT")
Path = bytes
log = structlog.get_logger()


class RefusingFiles(asyncssh.SFTPServer):
    """Refuses everything; what is allowed is added by those below. Nothing of asyncssh's own reaches the disk."""

    def __init__(
        self,
        channel: SSHChannel[bytes],
        peer: Peer,
        may_answer: asyncio.Event,
        threads: ThreadPoolExecutor,
    ) -> None:
        super().__init__(cast("asyncssh.SSHServerChannel[bytes]", channel))
        self.peer = peer
        self._may_answer = may_answer
        self._threads = threads
        self._open: set[OpenFile] = set()
        self._lists: WeakSet[_Listing] = WeakSet()

    # Files that are open. Only `open_file` and `list_folder` of those below hand any out.

    async def open(self, path: Path, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file."""
        await self.ready()
        if len(self._open) >= MAX_OPEN_FILES:
            raise asyncssh.SFTPFailure(f"{MAX_OPEN_FILES} files are open already: close some first")
        opened = await self.open_file(path, pflags)
        self._open.add(opened)
        return opened

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        """Give some of a file, at most what an answer holds."""
        opened = _as_open(file_obj)
        await self.ready()
        if offset > _LARGEST_OFFSET:
            return b""
        data = await self.blocking(opened.read, offset, min(size, MAX_READ_BYTES))
        DROPBOX_BYTES.labels("read").inc(len(data))
        return data

    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Take some of a file that was opened to be written."""
        opened = _as_open(file_obj)
        await self.ready()
        if not opened.is_written or offset > _LARGEST_OFFSET:
            self.refuse("write")
        written = await self.blocking(opened.write, offset, data)
        DROPBOX_BYTES.labels("written").inc(written)
        return written

    async def fsync(self, file_obj: object) -> None:
        """Have a file kept that was opened to be written."""
        opened = _as_open(file_obj)
        await self.ready()
        if not opened.is_written:
            self.refuse("fsync")
        await self.blocking(opened.sync)

    async def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        """Tell what an open file is like."""
        opened = _as_open(file_obj)
        await self.ready()
        return file_attributes(await self.blocking(opened.stat))

    async def close(self, file_obj: object) -> None:
        """Close a file; also called for those that a client leaves open at its end."""
        opened = _as_open(file_obj)
        self._open.discard(opened)
        await self.blocking(opened.close)
        self.closed(opened)

    async def exit(self) -> None:
        """Nothing else is held."""

    def scandir(self, path: Path) -> AsyncIterator[asyncssh.SFTPName]:
        """List a folder."""
        if len(self._lists) >= MAX_OPEN_LISTS:
            raise asyncssh.SFTPFailure(f"{MAX_OPEN_LISTS} lists are open already: close some first")
        listing = _Listing(self, path)
        self._lists.add(listing)
        return listing

    # What those below offer.

    async def open_file(self, path: Path, pflags: int) -> OpenFile:
        """Open a file. Raises OSError and SFTPError."""
        self.refuse("open")

    async def names_in(self, path: Path) -> Iterator[asyncssh.SFTPName]:
        """Return what a folder holds. Raises OSError and SFTPError."""
        self.refuse("list")

    def closed(self, opened: OpenFile) -> None:
        """Note that a client is done with a file."""

    # For those below.

    async def ready(self) -> None:
        """Wait until the client takes answers; note that it is active."""
        self.peer.is_active()
        await self._may_answer.wait()
        self.peer.is_active()

    async def blocking(self, call: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        """Call what blocks in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **kwargs))

    def refuse(self, request: str) -> NoReturn:
        """Refuse what is not offered."""
        peer = self.peer
        DROPBOX_REFUSED.labels(peer.role, request).inc()
        log.warning("dropbox_refused", request=request, user=peer.user_name, address=peer.address)
        raise asyncssh.SFTPPermissionDenied(f"{request} is not offered here")

    def format_longname(self, name: asyncssh.SFTPName) -> None:
        """Make a line as of `ls -l`, which tells nothing of this machine's users."""
        attributes = name.attrs
        mode = stat.filemode(attributes.permissions or 0)
        written = time.strftime("%b %d  %Y", time.gmtime(attributes.mtime or 0))
        line = f"{mode} 1 meterpost meterpost {attributes.size or 0:>12} {written} "
        name.longname = line.encode("ascii") + _as_bytes(name.filename)

    # Whatever else there is in the protocol. With these, none of asyncssh's own methods that touch a disk is left.

    def open56(self, path: Path, desired_access: int, flags: int, attrs: asyncssh.SFTPAttrs) -> NoReturn:
        """Refuse newer versions' way of opening: version 3 is what is offered."""
        self.refuse("open")

    def setstat(self, path: Path, attrs: asyncssh.SFTPAttrs) -> NoReturn:
        """Refuse to change times, rights, owners, lengths."""
        self.refuse("setstat")

    def lsetstat(self, path: Path, attrs: asyncssh.SFTPAttrs) -> NoReturn:
        """Refuse, as `setstat`."""
        self.refuse("setstat")

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> NoReturn:
        """Refuse, as `setstat`."""
        self.refuse("setstat")

    def mkdir(self, path: Path, attrs: asyncssh.SFTPAttrs) -> NoReturn:
        """Refuse to make folders."""
        self.refuse("mkdir")

    def rmdir(self, path: Path) -> NoReturn:
        """Refuse to remove folders."""
        self.refuse("rmdir")

    def symlink(self, oldpath: Path, newpath: Path) -> NoReturn:
        """Refuse to make links."""
        self.refuse("symlink")

    def link(self, oldpath: Path, newpath: Path) -> NoReturn:
        """Refuse to make links."""
        self.refuse("link")

    def readlink(self, path: Path) -> NoReturn:
        """Refuse: there are no links here."""
        self.refuse("readlink")

    def statvfs(self, path: Path) -> NoReturn:
        """Refuse to tell of the disk."""
        self.refuse("statvfs")

    def fstatvfs(self, file_obj: object) -> NoReturn:
        """Refuse to tell of the disk."""
        self.refuse("statvfs")

    def lock(self, file_obj: object, offset: int, length: int, flags: int) -> NoReturn:
        """Refuse to lock."""
        self.refuse("lock")

    def unlock(self, file_obj: object, offset: int, length: int) -> NoReturn:
        """Refuse, as `lock`."""
        self.refuse("lock")

    def map_path(self, path: bytes) -> NoReturn:
        """Refuse to make a path of this machine of a client's: nothing here does."""
        self.refuse("path")

    def reverse_map_path(self, path: bytes) -> NoReturn:
        """Refuse, as `map_path`."""
        self.refuse("path")

    def format_user(self, uid: int | None) -> str:
        """Tell nothing of this machine's users."""
        return "meterpost"

    def format_group(self, gid: int | None) -> str:
        """Tell nothing of this machine's groups."""
        return "meterpost"

    async def remove(self, path: Path) -> None:
        """Refuse to remove."""
        self.refuse("remove")

    async def rename(self, oldpath: Path, newpath: Path) -> None:
        """Refuse to rename."""
        self.refuse("rename")

    async def posix_rename(self, oldpath: Path, newpath: Path) -> None:
        """Refuse to rename."""
        self.refuse("rename")

    async def stat(self, path: Path) -> asyncssh.SFTPAttrs:
        """Refuse to tell of a file."""
        self.refuse("stat")

    async def lstat(self, path: Path) -> asyncssh.SFTPAttrs:
        """Refuse to tell of a file."""
        self.refuse("stat")

    def realpath(self, path: Path) -> Awaitable[bytes]:
        """Refuse to tell of a path."""
        self.refuse("realpath")


class _Listing:
    """A list under way; its names are looked up when the first is asked for."""

    def __init__(self, files: RefusingFiles, path: Path) -> None:
        self._files = files
        self._path = path
        self._names: Iterator[asyncssh.SFTPName] | None = None

    def __aiter__(self) -> "_Listing":
        return self

    async def __anext__(self) -> asyncssh.SFTPName:
        await self._files.ready()
        if self._names is None:
            self._names = await self._files.names_in(self._path)
        try:
            return next(self._names)
        except StopIteration:
            raise StopAsyncIteration from None


def file_attributes(entry: Entry) -> asyncssh.SFTPAttrs:
    """Return what is told of a file: nothing of owners and rights on this machine."""
    seconds = int(entry.modified_at)
    return asyncssh.SFTPAttrs(
        type=asyncssh.FILEXFER_TYPE_REGULAR,
        size=entry.size_bytes,
        permissions=stat.S_IFREG | 0o640,
        atime=seconds,
        mtime=seconds,
    )


def folder_attributes() -> asyncssh.SFTPAttrs:
    """Return what is told of a folder."""
    return asyncssh.SFTPAttrs(type=asyncssh.FILEXFER_TYPE_DIRECTORY, size=0, permissions=stat.S_IFDIR | 0o750)


def name_of(text: str, attributes: asyncssh.SFTPAttrs) -> asyncssh.SFTPName:
    """Return an entry of a list."""
    return asyncssh.SFTPName(text.encode("utf-8"), attrs=attributes)


def _as_open(file_obj: object) -> OpenFile:
    if not isinstance(file_obj, OpenFile):
        raise asyncssh.SFTPFailure("no such file is open")
    return file_obj


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text
