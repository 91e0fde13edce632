"""`python -m services.api`."""

import sys

from services.api.app import main
from services.api.settings import ApiSettings
from services.platform.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("api", ApiSettings, main))
