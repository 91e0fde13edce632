"""What is left out when a process starts is there when it is needed."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def said(code: str) -> list[str]:
    """Return what a process with the lean imports says."""
    done = subprocess.run(
        [sys.executable, "-c", f"import gc, sys\nimport services.platform.lean_imports\n{code}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).splitlines()


def test_structlog_is_there_without_rich_and_rich_where_it_is_asked_for() -> None:
    assert said(
        "print('structlog' in sys.modules, any(name.partition('.')[0] == 'rich' for name in sys.modules))\n"
        "import rich.console; print(rich.console.Console.__name__)"
    ) == ["True False", "Console"]


def test_an_error_is_logged_for_people_with_its_trace() -> None:
    lines = said(
        "import structlog\n"
        "from services.platform.telemetry import configure_logging\n"
        "configure_logging('a', 'b', 'info', 'console')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: structlog.get_logger().exception('broken')"
    )
    assert "broken" in lines[0]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_service_that_runs_and_a_command_look_for_cycles_again() -> None:
    assert said(
        "from services.platform.lifecycle import run\n"
        "from services.windowing.settings import WindowingSettings\n"
        "print(gc.isenabled()); run('windowing', WindowingSettings, None, is_check=True); print(gc.isenabled())"
    ) == ["False", "windowing: the settings are sound", "True"]
    lines = said(
        "import services.cli.__main__ as command\n"
        "print(gc.isenabled()); command.main(['secrets', 'new-key', 'a']); print(gc.isenabled())"
    )
    assert [line for line in lines if line in {"True", "False"}] == ["False", "True"]


def test_only_what_is_run_imports_it() -> None:
    found = {
        str(file.relative_to(REPOSITORY))
        for file in (REPOSITORY / "services").rglob("*.py")
        if "import services.platform.lean_imports" in file.read_text(encoding="utf-8")
    }
    assert {Path(file).name for file in found} == {"__main__.py"}
    assert len(found) == len(list((REPOSITORY / "services").glob("*/__main__.py")))
