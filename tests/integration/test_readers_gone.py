"""Commands whose reader has gone (`| head -1`) end quietly, and the product's own start says what can be chosen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY


@pytest.fixture
def nobody_reads() -> Iterator[int]:
    """Give the end of a pipe that is written to, whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def run(arguments: list[str], folder: Path, stdout: int) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METERPOST_")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(REPOSITORY), "METERPOST_DATA_FOLDER": str(folder / "data")},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["services.cli", "--help"],
        ["services.cli", "jobs", "--help"],
        ["services.cli", "jobs", "create", "--help"],
        ["services.cli", "completion", "bash"],
        ["services.local", "--help"],
        ["services.delivery", "--help"],
        # It has said its first sentence before the first server is started.
        ["services.local"],
    ],
    ids=" ".join,
)
def test_a_command_that_nobody_reads_ends_quietly(arguments: list[str], tmp_path: Path, nobody_reads: int) -> None:
    outcome = run(arguments, tmp_path, nobody_reads)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert not (tmp_path / "data" / "crash.log").exists()


def test_a_long_answer_is_cut_off_where_its_reader_stops(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "services.cli", "completion", "bash"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_products_help_names_every_setting_and_starts_nothing(tmp_path: Path) -> None:
    outcome = run(["services.local", "--help"], tmp_path, subprocess.PIPE)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    for variable in ("METERPOST_DATA_FOLDER", "METERPOST_METERS (500)", "METERPOST_DATABASE_URL (not set)"):
        assert variable in outcome.stdout
    assert "Meters of the demo organization" in outcome.stdout
    wrong = run(["services.local", "--meters", "7"], tmp_path, subprocess.PIPE)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "nothing is known of '--meters'" in wrong.stderr
    assert not (tmp_path / "data").exists()
