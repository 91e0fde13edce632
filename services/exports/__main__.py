"""`python -m services.exports`."""

import sys

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from services.exports.app import export
from services.exports.settings import ExportsSettings
from services.platform.command_line import service_parser
from services.platform.lifecycle import run

ABOUT = "Makes the files of exports that somebody asked for by hand, and removes them when their time is over."

if __name__ == "__main__":
    told = service_parser(ABOUT, ExportsSettings).parse_args()
    sys.exit(run("exports", ExportsSettings, export, is_check=told.check_config))
