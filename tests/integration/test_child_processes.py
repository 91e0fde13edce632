"""Child processes: their session, their end, and what a later start recognises."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local.errors import LocalServerError
from services.local.identity import noted_process, process_identity, write_pid_file
from services.local.processes import ChildProcess
from services.local.supervised import Service
from tests.support.polling import eventually

DEAF = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def _child(folder: Path, *code: str) -> ChildProcess:
    return ChildProcess(
        name="the child",
        command=[sys.executable, "-c", *code],
        log_file=folder / "child.log",
        pid_file=folder / "child.pid",
        working_folder=folder,
    )


def test_a_child_runs_in_a_session_of_its_own_and_stops_when_told(tmp_path: Path) -> None:
    child = _child(tmp_path, "import time; time.sleep(60)")
    child.start()
    assert child.pid is not None
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert noted_process(tmp_path / "child.pid") == child.pid

    child.stop(10)

    assert not child.is_running
    assert child.exit_code == -signal.SIGTERM
    assert not (tmp_path / "child.pid").exists()


def test_a_child_that_does_not_listen_is_killed_after_the_deadline(tmp_path: Path) -> None:
    child = _child(tmp_path, DEAF)
    child.start()
    child.wait_until_ready(lambda: child.log_tail() == "deaf", timeout_s=10)

    child.stop(0.1)

    assert child.exit_code == -signal.SIGKILL


def test_a_child_that_ends_while_starting_shows_the_end_of_its_log(tmp_path: Path) -> None:
    child = _child(tmp_path, "print('no licence found'); raise SystemExit(3)")
    child.start()
    with pytest.raises(LocalServerError, match=r"the child ended with exit code 3 .*\n.*no licence found"):
        child.wait_until_ready(lambda: False, timeout_s=10)


def test_a_child_that_is_never_ready_meets_the_deadline(tmp_path: Path) -> None:
    child = _child(tmp_path, "import time; time.sleep(60)")
    child.start()
    try:
        with pytest.raises(LocalServerError, match=r"was not ready after 0.1 seconds"):
            child.wait_until_ready(lambda: False, timeout_s=0.1)
    finally:
        child.kill()


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    child = ChildProcess(
        name="the child",
        command=["no-such-program"],
        log_file=tmp_path / "child.log",
        pid_file=tmp_path / "child.pid",
        working_folder=tmp_path,
    )
    child.start()
    with pytest.raises(LocalServerError, match=r"cannot run no-such-program: No such file"):
        child.wait_until_ready(lambda: False, timeout_s=10)


def test_a_child_left_by_an_earlier_process_is_ended_before_the_next_starts(tmp_path: Path) -> None:
    earlier, later = (_child(tmp_path, "import time; time.sleep(60)") for _ in range(2))
    earlier.start()
    try:
        later.start()
        eventually(lambda: not earlier.is_running)
        assert later.is_running
    finally:
        later.kill()


def test_a_reused_process_id_is_nobody_of_ours(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    """The id in the file is alive, but it is not the process that was noted."""
    pid_file = tmp_path / "child.pid"
    write_pid_file(pid_file, bystander.pid)
    assert noted_process(pid_file) == bystander.pid
    pid_file.write_text(f"{bystander.pid} {process_identity(os.getpid())}")
    assert noted_process(pid_file) is None
    child = _child(tmp_path, "import time; time.sleep(60)")

    child.start()
    child.kill()

    assert bystander.poll() is None


def test_a_process_that_ended_but_was_not_waited_for_has_no_identity() -> None:
    with subprocess.Popen(["true"]) as process:
        eventually(lambda: process_identity(process.pid) is None, because="a zombie has ended")


def test_a_service_that_needs_an_operator_is_told_of_once_and_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys; sys.exit(4)")
    for folder in ("logs", "run"):
        (tmp_path / folder).mkdir()
    service = Service("windowing", ["ends"], tmp_path, {"PYTHONPATH": str(tmp_path)})
    service.process.start()
    eventually(lambda: not service.process.is_running)
    assert service.look() == f"windowing stopped and needs an operator: see {tmp_path}/logs/windowing.log"
    assert [service.look(), service.look(), service.restarts] == [None, None, 0]
