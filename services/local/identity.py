"""Which process is which: ids are reused, so an id alone never says whom a signal would hit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc")
_POLL_INTERVAL_S = 0.02
_KILL_DEADLINE_S = 10.0


def process_identity(pid: int) -> str | None:
    """Return a text that is the same as long as this very process lives, or None when it has ended.

    A zombie has ended: it only waits for its parent to take notice.
    """
    if sys.platform != "linux":
        return _identity_by_ps(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the program's name, may itself hold blanks and brackets.
    fields = stat.rpartition(")")[2].split()
    state, started_ticks = fields[0], fields[19]
    return None if state in {"Z", "X"} else f"{boot}:{started_ticks}"


def _identity_by_ps(pid: int) -> str | None:
    listing = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = listing.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def write_pid_file(pid_file: Path, pid: int) -> None:
    """Note the process and its identity, in one step, so that a later start can recognise it."""
    fresh = pid_file.with_name(pid_file.name + ".new")
    fresh.write_text(f"{pid} {process_identity(pid) or ''}\n", encoding="utf-8")
    fresh.replace(pid_file)


def noted_process(pid_file: Path) -> int | None:
    """Return the id in the file if that very process still lives, otherwise None."""
    try:
        noted_pid, _, identity = pid_file.read_text(encoding="utf-8").strip().partition(" ")
        pid = int(noted_pid)
    except (FileNotFoundError, ValueError):
        return None
    return pid if identity and process_identity(pid) == identity else None


def end_noted_process(pid_file: Path, *, stop_signal: signal.Signals, timeout_s: float) -> None:
    """End the process that `pid_file` tells of, if it is still that very process, and remove the file."""
    pid = noted_process(pid_file)
    if pid is not None:
        end_process(pid, stop_signal=stop_signal, timeout_s=timeout_s)
    pid_file.unlink(missing_ok=True)


def processes_in(folder: Path, *, program: str) -> list[int]:
    """Return the processes that run `program` (a file name) with `folder` as their current folder.

    This finds servers of a data folder that nobody noted. Empty where there is no /proc, and blind to the
    processes of other users unless run by root.
    """
    found = []
    for entry in _PROC.glob("[0-9]*"):
        try:
            current_folder, running = ((entry / link).readlink() for link in ("cwd", "exe"))
        except OSError:
            continue  # it has ended, or is another user's
        if _undeleted(current_folder) == folder and _undeleted(running).name == program:
            found.append(int(entry.name))
    return found


def _undeleted(path: Path) -> Path:
    """Return the path without the mark that the kernel gives to what has been removed in the meantime."""
    return Path(str(path).removesuffix(" (deleted)"))


def end_process(pid: int, *, stop_signal: signal.Signals, timeout_s: float) -> None:
    """End a process that is not our child: `stop_signal`, and SIGKILL after `timeout_s`. Blocks until it ended.

    The caller has made sure whose id it is; a process that comes to bear the id later is left alone.
    """
    identity = process_identity(pid)
    if identity is None:
        return
    for how, patience_s in ((stop_signal, timeout_s), (signal.SIGKILL, _KILL_DEADLINE_S)):
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            return
        if wait_until(lambda: process_identity(pid) != identity, timeout_s=patience_s):
            return


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Ask again and again until the condition holds (True) or the time is over (False)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True
