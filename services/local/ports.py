"""The choice of free TCP ports on loopback."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from services.local.errors import LocalServerError

LOOPBACK = "127.0.0.1"

# Below the range from which systems take the source ports of outgoing connections (from 32768 on Linux, from
# 49152 elsewhere). A port of that range could be taken by any client while its server restarts, even by the
# very client that tries to reconnect to it.
_FIRST_PORT = 20_000
_LAST_PORT = 31_999
_TRIES = 200


def is_port_free(port: int) -> bool:
    """Tell whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections that are still fading out do not make a port taken, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
    return True


def free_port(*preferred: int | None, other_than: int | None = None) -> int:
    """Return the first of the preferred ports that is free, otherwise any free one, but never `other_than`.

    The port is not reserved: between this call and the server's start another process may take it, so a
    server that fails to start on it should choose again.
    """
    for port in preferred:
        if port is not None and port != other_than and is_port_free(port):
            return port
    choice = random.SystemRandom()
    for _ in range(_TRIES):
        port = choice.randint(_FIRST_PORT, _LAST_PORT)
        if port != other_than and is_port_free(port):
            return port
    raise LocalServerError(f"No free TCP port was found on {LOOPBACK} between {_FIRST_PORT} and {_LAST_PORT}.")


def remembered_port(memory: Path, *, configured: int | None, other_than: int | None = None) -> int:
    """Choose a free port and remember it in the file `memory`, so that a restart gets the same one if it can.

    What was remembered counts only as long as the configured port is the one it was chosen for.
    """
    port = free_port(_recall(memory, configured), configured, other_than=other_than)
    memory.write_text(json.dumps({"configured": configured, "chosen": port}), encoding="ascii")
    return port


def _recall(memory: Path, configured: int | None) -> int | None:
    try:
        noted = json.loads(memory.read_text(encoding="ascii"))
        chosen = noted["chosen"] if noted["configured"] == configured else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # nothing remembered, or a file cut short by a crash: any free port will do
    return chosen if isinstance(chosen, int) else None
