"""The `meterpost` command as its users start it: a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The whole of standard output, as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Meterpost:
    """Starts the command in `folder`, with nothing of Meterpost in its environment but `environment`."""

    folder: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: str | Path) -> Outcome:
        """Run one command to its end. A stack trace, whatever the outcome, is a failure."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("METERPOST_")}
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *map(str, arguments)],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80", **self.environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert "should not happen" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path) -> str:
        """Run a command that must succeed; return its standard output."""
        outcome = self(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome.out

    def json(self, *arguments: str | Path) -> Any:
        """Run a command that must succeed with --json; return what it says."""
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: str | Path, code: int = 2) -> str:
        """Run a command that must fail with `code`; return its sentence."""
        outcome = self(*arguments)
        assert outcome.code == code, (outcome.code, outcome.err)
        assert outcome.out == "", outcome.out
        return outcome.err
