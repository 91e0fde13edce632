"""The groups of the command are loaded one by one, and none is forgotten."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services import cli
from services.cli.groups import GROUPS, load

MODULES = {place.partition(":")[0] for group in GROUPS.values() for place in group.modules}


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_says_of_itself_what_the_list_says(name: str) -> None:
    group = load(name)
    assert group.help == GROUPS[name].help
    assert group.commands


def test_every_module_with_commands_is_in_a_group() -> None:
    found = set()
    for file in Path(cli.__path__[0]).glob("*.py"):
        if "\n@command(" in file.read_text(encoding="utf-8"):
            found.add(file.stem)
    assert found <= MODULES
    assert len(found) > 10


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys, services.cli.__main__ as command; command.main(['--help']); "
        "print([name for name in sys.modules if name.endswith('_commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_loads_no_library_that_only_others_need() -> None:
    code = (
        "import sys, services.cli.__main__ as command; "
        "command.main(['jobs', 'list', '--database', 'nothing://']); "
        "heavy = {'aiohttp', 'aiokafka', 'asyncssh', 'cryptography', 'numpy', 'obstore', 'prometheus_client', "
        "'pydantic_settings', 'pyarrow', 'rich', 'yaml'}; print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "must begin with postgresql://" in done.stderr
    assert done.stdout.splitlines() == ["[]"]


def test_an_interrupt_while_modules_load_ends_the_command_without_a_trace() -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'services.cli.app': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import services.cli.__main__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
