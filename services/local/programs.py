"""Programs that do one thing while we wait, unless we are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event

from services.local.errors import LocalServerError
from services.local.processes import Account

_POLL_INTERVAL_S = 0.1


def run_program(
    command: Sequence[str],
    *,
    timeout_s: float,
    ending: Event,
    working_folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> str:
    """Run a program to its end and return what it said. Blocks.

    Raises CalledProcessError, with what it said, when it fails, TimeoutExpired after `timeout_s`, and LocalServerError
    soon after `ending` is set; in the last two cases it is killed, with everything that it started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=working_folder,
        env=environment,
        user=None if account is None else account.user_id,
        group=None if account is None else account.group_id,
        extra_groups=None if account is None else [],
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout_s
    try:
        said = _output(process, deadline, ending)
    except BaseException:
        # Not reaped yet, so the id is still this process's, and so is the group of its own session.
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said)
    return said


def _output(process: subprocess.Popen[str], deadline: float, ending: Event) -> str:
    while True:
        if ending.is_set():
            raise LocalServerError(f"{process.args!r} was ended, because everything ends.")
        try:
            return process.communicate(timeout=_POLL_INTERVAL_S)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
