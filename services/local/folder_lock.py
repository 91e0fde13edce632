"""Exclusive use of a folder by one process, given back by the operating system however that process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from services.local.errors import LocalServerError

_POLL_INTERVAL_S = 0.1


class FolderLock:
    """An advisory lock on `folder`, held through an open file in it.

    The kernel releases it when the holder ends, also after SIGKILL, so no stale lock can be left behind.
    It is not passed on to child processes. As a context manager it waits for its turn, until `ending` is
    set; `acquire_or_fail` does not wait.
    """

    def __init__(self, folder: Path, ending: Event | None = None) -> None:
        self._ending = ending or Event()
        self._file = folder / "lock"
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether we hold it."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Wait, until the lock is ours or, which is a LocalServerError, `ending` is set."""
        while not self._try_lock():
            if self._ending.wait(_POLL_INTERVAL_S):
                raise LocalServerError(f"The folder {self._file.parent} was not waited for, because everything ends.")

    def acquire_or_fail(self) -> None:
        """Take the lock, or raise LocalServerError that names the process that holds it."""
        if not self._try_lock():
            holder = self._file.read_text(encoding="ascii", errors="replace").strip() or "unknown"
            raise LocalServerError(
                f"The folder {self._file.parent} is in use by another process (id {holder}): "
                "end that one first, or choose another data folder."
            )

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try_lock(self) -> bool:
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor
        return True
