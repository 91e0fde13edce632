"""`python -m services.windowing`."""

import sys

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from services.platform.command_line import service_parser
from services.platform.lifecycle import run
from services.windowing.app import main
from services.windowing.settings import WindowingSettings

ABOUT = "Closes windows of 1, 5, 15 and 60 minutes once everything is stored that arrived up to their cut-off."

if __name__ == "__main__":
    told = service_parser(ABOUT, WindowingSettings).parse_args()
    sys.exit(run("windowing", WindowingSettings, main, is_check=told.check_config))
