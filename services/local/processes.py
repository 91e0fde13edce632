"""Child processes: started apart from the terminal, recognised again after a crash, ended under a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from services.local.errors import LocalServerError
from services.local.identity import end_noted_process, write_pid_file

_LAUNCHER = Path(__file__).with_name("launch.py")
_LEFTOVER_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.05
_LOG_LIMIT_BYTES = 20_000_000
_TAIL_LINE_BYTES = 500
_LEAST_TAIL_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's user and group that a child runs as."""

    user_id: int
    group_id: int


class ChildProcess:
    """One program that we start, watch and end; it can be started again after it has ended.

    It runs in its own session, so the terminal's Ctrl-C reaches only us. Where the system offers it (Linux) it
    gets `death_signal` when we end, however we end. Its output is appended to `log_file`. `pid_file` tells a
    later start about it. Any thread may call the methods, one at a time.
    """

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str],
        log_file: Path,
        pid_file: Path,
        working_folder: Path,
        environment: Mapping[str, str] | None = None,
        account: Account | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = tuple(command)
        self._pid_file = pid_file
        self._working_folder = working_folder
        self._environment = None if environment is None else dict(environment)
        self._account = account
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the last start; None before the first."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended (the negative signal number after a signal); None while it runs or before a start."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the program, after ending what an earlier process of ours left running under `pid_file`.

        Does not wait until the program is of use: see `wait_until_ready`. Nothing happens when it runs.
        """
        if self.is_running:
            return
        self.end_leftover()
        self._rotate_log()
        account = ("-", "-")
        if self._account is not None:
            account = (str(self._account.user_id), str(self._account.group_id))
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(int(self._death_signal))]
        with self.log_file.open("ab") as log:
            self._process = _lasting_thread().call(
                lambda: subprocess.Popen(
                    [*launcher, *account, *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._working_folder,
                    env=self._environment,
                    start_new_session=True,
                )
            )
        write_pid_file(self._pid_file, self._process.pid)

    def end_leftover(self) -> None:
        """End the process that `pid_file` tells of, if it is still that very process. Blocks until it ended."""
        end_noted_process(self._pid_file, stop_signal=self._stop_signal, timeout_s=_LEFTOVER_TIMEOUT_S)

    def wait_until_ready(
        self, ready: Callable[[], bool], *, timeout_s: float, ending: threading.Event | None = None
    ) -> None:
        """Block until `ready` holds; LocalServerError with the end of the log if it ends before or takes longer.

        LocalServerError, too, as soon as `ending` is set.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if ending is not None and ending.is_set():
                raise LocalServerError(f"{self.name} was not waited for, because everything ends.")
            if not self.is_running:
                raise LocalServerError(self._complaint(f"ended with exit code {self.exit_code} while starting"))
            if time.monotonic() >= deadline:
                raise LocalServerError(self._complaint(f"was not ready after {timeout_s:g} seconds"))
            time.sleep(_POLL_INTERVAL_S)

    def stop(self, timeout_s: float) -> None:
        """Ask it to end and wait; kill it when it has not ended after `timeout_s`. Harmless when it has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once with SIGKILL, with everything in its process group, and wait until it has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            # Not reaped yet, so the id is still this process's, and so is the group of its own session.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_KILL_TIMEOUT_S)
        self._pid_file.unlink(missing_ok=True)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log; fewer where they are very long."""
        most_bytes = max(_LEAST_TAIL_BYTES, lines * _TAIL_LINE_BYTES)
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - most_bytes))
                return b"".join(deque(log, maxlen=lines)).decode("utf-8", errors="replace").rstrip()
        except FileNotFoundError:
            return ""

    def _complaint(self, what: str) -> str:
        return f"{self.name} {what}. The end of {self.log_file}:\n{self.log_tail()}"

    def _rotate_log(self) -> None:
        if self.log_file.exists() and self.log_file.stat().st_size > _LOG_LIMIT_BYTES:
            self.log_file.replace(self.log_file.with_name(self.log_file.name + ".1"))


class _LastingThread:
    """Starts all children: the system sends the death signal when the thread that started the child ends.

    So that is never a thread of a pool or of a caller, but one that lives exactly as long as this process.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._calls = SimpleQueue()
        threading.Thread(target=self._run, name="child-starter", daemon=True).start()

    def call(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Call `start` in the thread; return or raise as it does."""
        outcome: Future[subprocess.Popen[bytes]] = Future()
        self._calls.put((start, outcome))
        return outcome.result()

    def _run(self) -> None:
        while True:
            start, outcome = self._calls.get()
            try:
                outcome.set_result(start())
            except BaseException as error:  # noqa: BLE001  it is raised again in the caller's thread
                outcome.set_exception(error)


@cache
def _lasting_thread() -> _LastingThread:
    return _LastingThread()
