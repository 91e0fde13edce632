"""`python -m services.dropbox`."""

import sys

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from services.dropbox.app import serve
from services.dropbox.settings import DropboxSettings
from services.platform.command_line import service_parser
from services.platform.lifecycle import run

ABOUT = "Serves the hosted folder over SFTP: delivery leaves files there, customers fetch and remove them."

if __name__ == "__main__":
    told = service_parser(ABOUT, DropboxSettings).parse_args()
    sys.exit(run("dropbox", DropboxSettings, serve, is_check=told.check_config))
