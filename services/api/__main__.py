"""`python -m services.api`."""

import sys

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from services.api.app import main
from services.api.settings import ApiSettings
from services.platform.command_line import service_parser
from services.platform.lifecycle import run

ABOUT = "Serves the HTTP API, in plain HTTP: TLS is ended before it."

if __name__ == "__main__":
    told = service_parser(ABOUT, ApiSettings).parse_args()
    sys.exit(run("api", ApiSettings, main, is_check=told.check_config))
