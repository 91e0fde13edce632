"""What the embedded servers have in common: a folder that is theirs alone, one process, a start that can be ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import ClassVar

from services.local.errors import LocalServerError
from services.local.folder_lock import FolderLock
from services.local.processes import ChildProcess

START_TIMEOUT_S = 60.0


class EmbeddedServer(ABC):
    """One server, listening on loopback only; everything it keeps belongs to `data_folder`.

    What it keeps survives `stop`, `kill` and a crash, and `start` works after each. The port is chosen at the start:
    the one of the last start if it is free, the one asked for, or any free one. Any thread may call the methods, one at
    a time; but once `ending` is set, a start in another thread fails at once, and so does each later one.
    """

    _data: ClassVar[str]
    """What is kept, for messages."""

    def __init__(self, data_folder: Path, port: int | None, ending: Event | None) -> None:
        self._folder = data_folder.resolve()
        self._configured_port = port
        self._port: int | None = None
        self._ending = ending or Event()
        self._lock = FolderLock(self._folder)
        self._child: ChildProcess | None = None

    @property
    def is_running(self) -> bool:
        """Whether the server's (first) process lives."""
        return self._child is not None and self._child.is_running

    @property
    def pid(self) -> int | None:
        """The id of the (first) process of the last start."""
        return None if self._child is None else self._child.pid

    @property
    @abstractmethod
    def log_file(self) -> Path:
        """Where the server writes what is wrong."""

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server and block until it serves clients; nothing happens when it runs.

        Processes that an earlier server left running on the same data are ended first; recovery after a crash counts
        towards `timeout_s`. LocalServerError when the folder is in use or cannot be used, when something that the
        server needs is missing, or when it fails, takes longer, or is told to end.
        """
        if self.is_running:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalServerError(f"{self._data} cannot be kept in {self._folder}: {error.strerror}.") from error
        self._lock.acquire_or_fail()
        try:
            self._start_locked(timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the server in good order, by force after `timeout_s`; nothing happens when it does not run."""
        if self._child is not None:
            self._child.stop(timeout_s)
        self._after_end()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would, with all its processes."""
        if self._child is not None:
            self._child.kill()
        self._after_end()

    @abstractmethod
    def _start_locked(self, timeout_s: float) -> None:
        """Start the server; the folder is there and ours."""

    def _wait_until_ready(self, child: ChildProcess, ready: Callable[[], bool], timeout_s: float) -> None:
        child.wait_until_ready(ready, timeout_s=timeout_s, ending=self._ending)

    def _after_end(self) -> None:
        self._lock.release()
