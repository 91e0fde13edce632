"""`python -m services.windowing`."""

import sys

from services.platform.lifecycle import run
from services.windowing.app import main
from services.windowing.settings import WindowingSettings

if __name__ == "__main__":
    sys.exit(run("windowing", WindowingSettings, main))
