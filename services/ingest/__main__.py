"""`python -m services.ingest`."""

import sys

from services.ingest.app import main
from services.ingest.settings import IngestSettings
from services.platform.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("ingest", IngestSettings, main))
