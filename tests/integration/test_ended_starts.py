"""Starts that are under way when everything is to end: each fails soon and leaves no process behind."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from services.local.errors import LocalServerError
from services.local.folder_lock import FolderLock
from services.local.identity import process_identity
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.programs import run_program
from tests.support.polling import eventually

SOON_S = 5
# A program that takes minutes, started by another one, as Maven's Java is.
SLOW = """[ "$1" = -version ] && { echo 'openjdk version "21.0.2"' >&2; exit; }
sleep 600 & echo $! > {note}; wait"""


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file that tells the id of the process which the slow program started; java and mvn are such."""
    note = tmp_path / "pid"
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("java", "mvn"):
        program = folder / name
        program.write_text("#!/bin/sh\n" + SLOW.replace("{note}", f"'{note}'"))
        program.chmod(0o755)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return note


def fails_soon(start: Callable[[], object], ending: Event, begun: Callable[[], object]) -> None:
    """Let `start` run in a thread until `begun`, set `ending`, and see it fail."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            start()
        except LocalServerError as error:
            failures.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    eventually(begun, because="the start is under way")
    ending.set()
    thread.join(SOON_S)
    assert not thread.is_alive()
    [error] = failures
    assert "because everything ends" in str(error)


def noted(note: Path) -> int | None:
    """Return the id of the slow process once it is written and while it lives."""
    text = note.read_text().strip() if note.exists() else ""
    return int(text) if text and process_identity(int(text)) else None


def test_maven_is_ended_with_what_it_started(note: Path, tmp_path: Path) -> None:
    ending = Event()
    fails_soon(lambda: ensure_kafka_libraries(tmp_path / "tools", ending), ending, lambda: noted(note))
    eventually(lambda: noted(note) is None, because="the slow process has ended")
    assert not list((tmp_path / "tools").glob("kafka-*"))


def test_nobody_waits_for_another_process_that_fetches(note: Path, tmp_path: Path) -> None:
    ending = Event()
    (tmp_path / "tools").mkdir()
    with FolderLock(tmp_path / "tools"):
        started = Event()

        def start() -> None:
            started.set()
            ensure_kafka_libraries(tmp_path / "tools", ending)

        fails_soon(start, ending, started.is_set)
    assert noted(note) is None


@pytest.mark.parametrize("is_formatted", [False, True])
def test_kafka_is_ended_while_it_starts(note: Path, tmp_path: Path, is_formatted: bool) -> None:
    ending = Event()
    if is_formatted:
        (tmp_path / "kafka" / "records").mkdir(parents=True)
        (tmp_path / "kafka" / "records" / "meta.properties").write_text("cluster.id=abc\n")
    server = KafkaServer(data_folder=tmp_path / "kafka", libraries=tmp_path, ending=ending)
    fails_soon(server.start, ending, lambda: noted(note))
    eventually(lambda: noted(note) is None, because="the slow process has ended")
    assert not server.is_running
    with pytest.raises(LocalServerError, match="everything ends"):
        server.start()


def test_what_a_program_says_and_how_it_ends_is_told() -> None:
    script = [sys.executable, "-c", "import sys; print('x' * 200_000); print('y', file=sys.stderr); sys.exit({})"]
    said = run_program([*script[:2], script[2].format(0)], timeout_s=30, ending=Event())
    assert sorted(said.split()) == ["x" * 200_000, "y"]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_program([*script[:2], script[2].format(3)], timeout_s=30, ending=Event())
    assert (failed.value.returncode, len(failed.value.output)) == (3, 200_003)
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(["sleep", "600"], timeout_s=0.3, ending=Event())
    assert time.monotonic() - began < SOON_S
