"""`python -m services.ingest`."""

import sys

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from services.ingest.app import main
from services.ingest.settings import IngestSettings
from services.platform.command_line import service_parser
from services.platform.lifecycle import run

ABOUT = "Stores the readings of the two reading topics, every version once, and every refused one with its reason."

if __name__ == "__main__":
    told = service_parser(ABOUT, IngestSettings).parse_args()
    sys.exit(run("ingest", IngestSettings, main, is_check=told.check_config))
