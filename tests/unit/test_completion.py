"""`meterpost completion`: a real bash completes commands and options, and loads no more than it needs."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY

_DEADLINE_S = 30


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Give a shell in which `meterpost` runs this code."""
    command = tmp_path / "meterpost"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m services.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "TERM": "dumb"}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("meterpost jo", ["jobs"]),
        ("meterpost jobs re", ["resume", "recover", "requests"]),
        ("meterpost exports create --f", ["--from", "--format"]),
        ("meterpost exports create --format p", ["parquet"]),
        # Bash breaks words at colons; the commands behind an address are found nevertheless.
        ("meterpost --url http://127.0.0.1:8081 exports do", ["download"]),
        ("meterpost completion z", ["zsh"]),
        ("meterpost nothing x", []),
    ],
)
def test_bash_offers_what_there_is(environment: dict[str, str], tmp_path: Path, line: str, offered: list[str]) -> None:
    script = (
        'eval "$(meterpost completion bash)"; COMP_LINE=$1 COMP_POINT=${#1}; _meterpost_completion meterpost; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=True,
    )
    assert sorted(done.stdout.split()) == sorted(offered)
    assert done.stderr == ""


def test_a_person_presses_tab(environment: dict[str, str], tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "-i"], stdin=inside, stdout=inside, stderr=inside,
        env=environment | {"PS1": "> "}, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    try:
        os.write(terminal, b'eval "$(meterpost completion bash)" && echo rea""dy\n')
        _until(terminal, b"ready")
        os.write(terminal, b"meterpost expor\t")
        _until(terminal, b"exports ")
        os.write(terminal, b"dow\t")
        _until(terminal, b"download ")
    finally:
        shell.kill()
        shell.wait(_DEADLINE_S)
        os.close(terminal)


@pytest.mark.parametrize(("shell", "says"), [("zsh", "#compdef meterpost"), ("fish", "complete --command meterpost")])
def test_the_other_shells_get_their_script(environment: dict[str, str], tmp_path: Path, shell: str, says: str) -> None:
    done = subprocess.run(
        [tmp_path / "meterpost", "completion", shell],
        env=environment, capture_output=True, text=True, timeout=_DEADLINE_S, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(says)


def test_to_complete_a_group_loads_no_other(environment: dict[str, str]) -> None:
    code = (
        "import os, sys\n"
        "os.environ.update(_METERPOST_COMPLETE='complete_fish', _TYPER_COMPLETE_FISH_ACTION='get-args',"
        " _TYPER_COMPLETE_ARGS=sys.argv.pop())\n"
        "import services.cli.__main__ as command\n"
        "try:\n    command.main([])\nexcept SystemExit:\n    pass\n"
        "print([name for name in sys.modules if name.endswith('_commands')])"
    )
    for line, loaded in (("meterpost ", []), ("meterpost meters ", ["services.cli.meter_commands"])):
        done = subprocess.run(
            [sys.executable, "-c", code, line],
            env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=_DEADLINE_S, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == str(loaded)


def _until(terminal: int, wanted: bytes) -> None:
    """Read what the shell shows until `wanted` is in it."""
    shown, deadline = b"", time.monotonic() + _DEADLINE_S
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} is not shown, but {shown!r}"
        shown += os.read(terminal, 4096)
