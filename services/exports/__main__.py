"""`python -m services.exports`."""

import sys

from services.exports.app import export
from services.exports.settings import ExportsSettings
from services.platform.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("exports", ExportsSettings, export))
