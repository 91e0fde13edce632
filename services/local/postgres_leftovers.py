"""What an earlier PostgreSQL server may have left: running processes, and the file by which it claims its data."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from services.local.errors import LocalServerError
from services.local.identity import end_process, processes_in, wait_until

_PROGRAM = "postgres"
_STOP_TIMEOUT_S = 10.0
_ORPHANS_TIMEOUT_S = 10.0


def claimed_by(files: Path) -> tuple[int, str] | None:
    """Return process id and state ("starting", "ready", …) that the server on `files` has noted there, if any."""
    try:
        lines = (files / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
        return None


def end_servers_on(files: Path) -> None:
    """End every PostgreSQL process that works on `files`: the first one in good order, then its orphans.

    For when no server may run there. A process is known by its program and its current folder, which
    PostgreSQL sets to its data, so no process of anybody else can be hit. Does nothing where there is no /proc.
    """
    found = processes_in(files, program=_PROGRAM)
    claim = claimed_by(files)
    if claim is not None and claim[0] in found:
        end_process(claim[0], stop_signal=signal.SIGINT, timeout_s=_STOP_TIMEOUT_S)
    # A process in the middle of a long statement does not notice that the first one has been killed.
    for orphan in processes_in(files, program=_PROGRAM):
        end_process(orphan, stop_signal=signal.SIGKILL, timeout_s=_ORPHANS_TIMEOUT_S)
    if not wait_until(lambda: not processes_in(files, program=_PROGRAM), timeout_s=_ORPHANS_TIMEOUT_S):
        raise LocalServerError(f"Processes of an earlier PostgreSQL still use {files} and cannot be ended.")


def remove_stale_claim(files: Path) -> None:
    """Remove the claim of a server that has ended.

    PostgreSQL itself keeps a claim whose process id is borne by any process of the same user, or by a zombie,
    and then refuses to start. Called after `end_servers_on`, so nobody works there any more.
    """
    if sys.platform == "linux":
        (files / "postmaster.pid").unlink(missing_ok=True)
