"""The demo's HTTPS receiver as a process, and what it has received."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.local.certificates import ensure_certificates
from services.local.ports import LOOPBACK, free_port
from services.local.processes import ChildProcess
from services.platform.clock import SystemClock
from tests.support.platform import SHOWN_LINES
from tests.support.polling import eventually

REPOSITORY = Path(__file__).parents[2]
NOTES = "requests.jsonl"


class DemoReceiver:
    """A customer's server with a certificate authority of its own; keeps port and folder when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "received"
        self.port = free_port()
        self.certificates = ensure_certificates(folder / "certificates", SystemClock().now())
        self._process = ChildProcess(
            name="receiver",
            command=[
                *(sys.executable, "-m", "services.local.https_receiver"),
                *("--folder", str(self.folder), "--port", str(self.port)),
                *("--certificate", str(self.certificates.server), "--key", str(self.certificates.server_key)),
            ],
            log_file=folder / "receiver.log",
            pid_file=folder / "receiver.pid",
            working_folder=REPOSITORY,
        )

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/in"

    @property
    def ca_pem(self) -> str:
        return self.certificates.authority.read_text(encoding="ascii")

    def start(self) -> None:
        """Start it and wait until it listens."""
        said_before = self._process.log_tail(1_000).count(f"https://{LOOPBACK}")
        self._process.start()
        eventually(
            lambda: self._process.log_tail(1_000).count(f"https://{LOOPBACK}") > said_before,
            20,
            because="the receiver listens",
        )

    def log_tail(self, lines: int) -> str:
        """Return the last lines of what it said."""
        return self._process.log_tail(lines)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def files(self) -> dict[str, bytes]:
        """Return the parts as they lie on the disk, by their path in the folder."""
        return {
            str(file.relative_to(self.folder)): file.read_bytes() for file in sorted(self.folder.glob("[0-9]*/[!.]*"))
        }

    def count(self) -> int:
        """Return how many parts there are."""
        return sum(1 for _ in self.folder.glob("[0-9]*/[!.]*"))

    def requests(self) -> list[dict[str, Any]]:
        """Return its notes of all requests, in their order."""
        notes = self.folder / NOTES
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


@contextmanager
def demo_receiver(folder: Path) -> Iterator[DemoReceiver]:
    """Run a receiver in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    receiver = DemoReceiver(folder)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.kill()
        print(f"--- receiver, {receiver.count()} parts\n{receiver.log_tail(SHOWN_LINES)}")
