"""The organizations' folders on disk: flat, with nothing but plain files, and never more than the quota allows.

Every file is reached by its name relative to an open folder, without following links, so that no path, whatever it
holds, leads out of the folder. All of this blocks: it is called in threads. Errors are OSError, with words for people.
"""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from services.dropbox.names import is_file_name, is_partial_name

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Quota(NamedTuple):
    """What the files of one organization may come to."""

    size_bytes: int
    files: int


class Entry(NamedTuple):
    """A file in a folder."""

    name: str
    size_bytes: int
    modified_at: float
    """Seconds since the epoch: when it was written."""

    @property
    def is_partial(self) -> bool:
        """Whether it is under way, or was left behind by a crash."""
        return is_partial_name(self.name)


@dataclass(eq=False)
class OpenFile:
    """A file that a client holds open, to read or to write."""

    folder: "Folder"
    name: str
    descriptor: int
    size_bytes: int
    is_written: bool
    read_bytes: int = 0
    read_until: int = 0

    @property
    def was_fetched(self) -> bool:
        """Whether all of it has been read, up to the end."""
        return not self.is_written and self.read_until >= self.size_bytes and self.read_bytes >= self.size_bytes

    def seek(self, offset: int, whence: int) -> int:
        """Tell asyncssh where data begins and ends, for clients that ask after holes."""
        return os.lseek(self.descriptor, offset, whence)

    def stat(self) -> Entry:
        """Return what the file is like now."""
        found = os.fstat(self.descriptor)
        return Entry(self.name, found.st_size, found.st_mtime)

    def read(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes, none at the end."""
        data = os.pread(self.descriptor, length, offset)
        self.read_bytes += len(data)
        self.read_until = max(self.read_until, offset + len(data))
        return data

    def write(self, offset: int, data: bytes) -> int:
        """Write all of it; nothing at all where the quota does not allow it."""
        growth = max(0, offset + len(data) - self.size_bytes)
        self.folder.reserve(growth)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self.descriptor, data[written:], offset + written)
        finally:
            grown = max(0, offset + written - self.size_bytes) if written else 0
            self.size_bytes += grown
            self.folder.release(growth - grown)
        return written

    def sync(self) -> None:
        """Have it kept."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Give it back."""
        os.close(self.descriptor)
        if self.is_written:
            self.folder.written()


class Folder:
    """One organization's folder. Its methods may be called in several threads."""

    def __init__(self, organization_id: int, descriptor: int, quota: Quota) -> None:
        self.organization_id = organization_id
        self._descriptor = descriptor
        self._quota = quota
        self._lock = threading.Lock()
        self._files = self._bytes = self._writers = 0
        self.recount()

    @property
    def used(self) -> Quota:
        """What its files come to."""
        return Quota(self._bytes, self._files)

    def entries(self) -> Iterator[Entry]:
        """Give every file, those under way, too; whatever is no plain file of a sound name is not there at all."""
        with os.scandir(self._descriptor) as found:
            names = [one.name for one in found]
        for name in names:
            entry = self.entry(name)
            if entry is not None:
                yield entry

    def entry(self, name: str) -> Entry | None:
        """Return a file; None where there is none, or something else than a plain file."""
        if not (is_file_name(name) or is_partial_name(name)):
            return None
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Entry(name, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def open(self, name: str) -> OpenFile:
        """Open a file to read it."""
        if self.entry(name) is None:
            raise _not_there(name)
        descriptor = os.open(name, _READ_FLAGS, dir_fd=self._descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):  # it was replaced meanwhile
            os.close(descriptor)
            raise _not_there(name)
        return OpenFile(self, name, descriptor, found.st_size, is_written=False)

    def create(self, name: str) -> OpenFile:
        """Create a file under its hidden name, to write it."""
        if not is_partial_name(name):
            raise PermissionError(errno.EACCES, "a file is created under a hidden name: .NAME.partial")
        with self._lock:
            if self._files >= self._quota.files:
                raise OSError(errno.EDQUOT, f"the organization's quota of {self._quota.files:,} files is used up")
            descriptor = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=self._descriptor)
            self._files += 1
            self._writers += 1
        return OpenFile(self, name, descriptor, 0, is_written=True)

    def written(self) -> None:
        """Note that a file that was written has been closed."""
        with self._lock:
            self._writers -= 1

    def recount(self) -> None:
        """Count anew what lies there, unless something is being written: others may have removed files by hand."""
        with self._lock:
            if self._writers == 0:
                entries = list(self.entries())
                self._files, self._bytes = len(entries), sum(entry.size_bytes for entry in entries)

    def reserve(self, size_bytes: int) -> None:
        """Count bytes that are about to be written."""
        with self._lock:
            if self._bytes + size_bytes > self._quota.size_bytes:
                raise OSError(errno.EDQUOT, f"the organization's quota of {self._quota.size_bytes:,} bytes is used up")
            self._bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Count bytes that were not written after all, or that were removed."""
        with self._lock:
            self._bytes -= size_bytes

    def put_in_place(self, partial: str, name: str) -> Entry:
        """Give a file that is complete its name, for good, and never in the place of another."""
        if not is_partial_name(partial) or not is_file_name(name):
            raise PermissionError(errno.EACCES, "only a file under a hidden name can be given a name, and only once")
        descriptor = os.open(partial, _READ_FLAGS, dir_fd=self._descriptor)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # One process serves the folder, so under the lock nobody else puts a file there meanwhile.
        with self._lock:
            if _exists(name, self._descriptor):
                raise FileExistsError(errno.EEXIST, f"{name} is there already")
            os.rename(partial, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        os.fsync(self._descriptor)
        entry = self.entry(name)
        if entry is None:
            raise _not_there(name)
        return entry

    def remove(self, name: str) -> Entry:
        """Remove a file."""
        with self._lock:
            entry = self.entry(name)
            if entry is None:
                raise _not_there(name)
            os.unlink(name, dir_fd=self._descriptor)
            self._files -= 1
            self._bytes -= entry.size_bytes
        return entry

    def close(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


@dataclass
class Folders:
    """The folders of all organizations, below `root`."""

    root: Path
    quota: Quota
    _open: dict[int, Folder] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def organization_ids(self) -> list[int]:
        """Return the organizations that have a folder."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self.root) as found:
            names = [one.name for one in found if one.is_dir(follow_symlinks=False)]
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and name[0] != "0")

    def find(self, organization_id: int) -> Folder | None:
        """Return the folder, if there is one."""
        with self._lock:
            return self._find(organization_id)

    def ensure(self, organization_id: int) -> Folder:
        """Return the folder, made where there is none."""
        with self._lock:
            found = self._find(organization_id)
            if found is None:
                (self.root / str(organization_id)).mkdir(mode=0o700, parents=True)
                found = self._find(organization_id)
            if found is None:
                raise _not_there(str(organization_id))
            return found

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            for folder in self._open.values():
                folder.close()
            self._open.clear()

    def _find(self, organization_id: int) -> Folder | None:
        known = self._open.get(organization_id)
        if known is None:
            try:
                descriptor = os.open(self.root / str(organization_id), _FOLDER_FLAGS)
            except FileNotFoundError:
                return None
            known = self._open[organization_id] = Folder(organization_id, descriptor, self.quota)
        return known


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _not_there(name: str) -> OSError:
    return FileNotFoundError(errno.ENOENT, f"there is no file {name}")
