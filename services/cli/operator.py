"""Who gives a command: the name under which decisions are recorded."""

import getpass
import socket


def operator_name() -> str:
    """Return user@host of the operating system."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
