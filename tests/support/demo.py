"""`python -m services.local` as its users run it: a process on a pipe, in a data folder of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.local.identity import end_process, process_identity
from services.local.postgres_binaries import find_postgres
from services.local.postgres_cluster import remove_cluster
from tests.support.polling import eventually
from tests.support.stack import JAVA_FLAGS

REPOSITORY = Path(__file__).parents[2]
_PROC = Path("/proc")


def demo_environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment with nothing of Meterpost in it but the data folder and `more`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METERPOST_")}
    # Java's own variable: its Kafka starts as quickly as those that tests share.
    java = {"JDK_JAVA_OPTIONS": " ".join(JAVA_FLAGS)}
    return {**inherited, **java, "METERPOST_DATA_FOLDER": str(folder), "METERPOST_METERS": "50", **more}


def run_to_its_end(environment: Mapping[str, str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a demo that is expected to refuse."""
    return subprocess.run(
        [sys.executable, "-m", "services.local"],
        cwd=REPOSITORY,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Demo:
    """One instance; it can be started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._endpoints_of_before: int | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it says that everything is up."""
        self.begin()
        eventually(lambda: self.is_up or not self.is_running, 90, because="everything is up")
        assert self.is_running, self.lines

    def begin(self) -> None:
        """Start it, and wait for nothing."""
        assert not self.is_running
        self.lines = []
        self._endpoints_of_before = self._endpoints_written()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.local"],
            cwd=REPOSITORY,
            env=demo_environment(self.folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def ensure_up(self) -> None:
        """Start it unless it runs."""
        if not self.is_running:
            self.start()

    @property
    def is_up(self) -> bool:
        """Whether it says so; a file that a killed instance left says nothing of this one."""
        return self._endpoints_written() not in {None, self._endpoints_of_before}

    def endpoints(self) -> Any:
        """Return the addresses for programs."""
        return json.loads((self.folder / "endpoints.json").read_text())

    def received(self) -> set[Path]:
        """Return the parts that lie at the receiver."""
        return set((self.folder / "received" / "https").glob("[0-9]*/[!.]*"))

    def said(self, *words: str) -> bool:
        """Tell whether some line holds all these words."""
        return any(all(word in line for word in words) for line in list(self.lines))

    def interrupt(self) -> tuple[int, float]:
        """Press Ctrl-C; return the exit code and the seconds that it took."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(30)
        return code, time.monotonic() - began

    def kill(self) -> None:
        """End the supervisor alone, at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def processes(self) -> dict[int, str]:
        """Return every process that descends from it, with what tells each from a later one of the same id."""
        parents = {}
        for entry in _PROC.glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has ended
        found = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: identity for pid in sorted(found) if (identity := process_identity(pid))}

    def clean_up(self) -> None:
        """End whatever is left and remove what lies outside the folder."""
        if self.is_running:
            own = self.processes()
            self.interrupt()
            for pid, identity in own.items():
                if process_identity(pid) == identity:
                    end_process(pid, stop_signal=signal.SIGTERM, timeout_s=5)
        remove_cluster((self.folder / "postgres").resolve(), find_postgres())

    def _endpoints_written(self) -> int | None:
        file = self.folder / "endpoints.json"
        try:
            return file.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))


def still_alive(processes: Mapping[int, str]) -> list[str]:
    """Return the commands of those processes that have not ended."""
    alive = [pid for pid, identity in processes.items() if process_identity(pid) == identity]
    return [f"{pid} {(_PROC / str(pid) / 'cmdline').read_text().replace(chr(0), ' ')}" for pid in alive]


@contextmanager
def demo_in(folder: Path) -> Iterator[Demo]:
    """Give an instance that has not been started; it is ended with everything of it."""
    demo = Demo(folder)
    try:
        yield demo
    finally:
        print("\n".join(demo.lines[-40:]))
        demo.clean_up()
