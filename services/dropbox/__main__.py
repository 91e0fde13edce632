"""`python -m services.dropbox`."""

import sys

from services.dropbox.app import serve
from services.dropbox.settings import DropboxSettings
from services.platform.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("dropbox", DropboxSettings, serve))
