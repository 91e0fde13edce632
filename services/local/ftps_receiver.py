"""The demo's FTPS receiver: a customer's server on loopback, one account, one folder, TLS on both connections.

`python -m services.local.ftps_receiver --folder DIR --port N --certificate PEM --key PEM --user NAME --password-file F`
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import TLS_FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer

from services.local.ports import LOOPBACK

# It reports every command; on standard error only what is wrong.
_LOG = logging.getLogger("pyftpdlib")
_LOG.setLevel(logging.ERROR)
_LOG.addHandler(logging.StreamHandler())
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Tls:
    """The server's certificate and key, and whether TLS begins with the connection."""

    certificate: Path
    key: Path
    implicit: bool = False


class FtpsReceiver:
    """A server in this process; `serve` blocks until `stop`."""

    def __init__(
        self,
        folder: Path,
        user: str,
        password: str,
        tls: Tls,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        rights: str = "",
        files: type[AbstractedFS] = AbstractedFS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authorizer = DummyAuthorizer()
        authorizer.add_user(user, password, str(folder), perm=rights or "elradfmw")
        attributes: dict[str, Any] = {
            "authorizer": authorizer,
            "abstracted_fs": files,
            "certfile": str(tls.certificate),
            "keyfile": str(tls.key),
            "tls_control_required": True,
            "tls_data_required": True,
            "banner": "ready",
            # Wrong passwords are answered at once: nobody guesses here.
            "auth_failed_timeout": 0,
        }
        if tls.implicit:
            attributes["handle"] = _begin_with_tls
        handler = type("Handler", (TLS_FTPHandler,), attributes)
        self._server = FTPServer((host, port), handler, ioloop=IOLoop())
        self._stopping = threading.Event()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.address[1])

    def serve(self) -> None:
        """Serve until told to stop."""
        while not self._stopping.is_set():
            self._server.ioloop.loop(timeout=_LOOK_SECONDS, blocking=False)
        self._server.close_all()

    def stop(self) -> None:
        """Make `serve` return. Any thread may call it."""
        self._stopping.set()


def _begin_with_tls(handler: Any) -> None:
    """Secure the connection before the greeting, which is what implicit FTPS is."""
    handler.secure_connection(handler.ssl_context)
    TLS_FTPHandler.handle(handler)


@contextmanager
def serving_ftps(receiver: FtpsReceiver) -> Iterator[int]:
    """Serve in a thread; give the port."""
    thread = threading.Thread(target=receiver.serve, name="ftps-receiver", daemon=True)
    thread.start()
    try:
        yield receiver.port
    finally:
        receiver.stop()
        thread.join(5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the receiver until SIGTERM or SIGINT and return the exit code."""
    parser = argparse.ArgumentParser(prog="ftps_receiver", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the files arrive")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; default: %(default)s, loopback only")
    parser.add_argument("--port", type=int, required=True, help="port; 0 takes a free one")
    parser.add_argument("--certificate", type=Path, required=True, help="the server's certificate (PEM)")
    parser.add_argument("--key", type=Path, required=True, help="its private key (PEM)")
    parser.add_argument("--user", required=True, help="the account's name")
    parser.add_argument("--password-file", type=Path, required=True, help="holds the account's password")
    options = parser.parse_args(arguments)
    try:
        password = options.password_file.read_text(encoding="utf-8").strip()
        tls = Tls(options.certificate, options.key)
        receiver = FtpsReceiver(options.folder, options.user, password, tls, host=options.host, port=options.port)
    except OSError as error:
        print(f"ftps_receiver: cannot serve on port {options.port}: {error}", file=sys.stderr)  # noqa: T201
        return 1

    def stop(_number: int, _frame: FrameType | None) -> None:
        receiver.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    print(f"ftps://{options.host}:{receiver.port}", flush=True)  # noqa: T201 - the command's answer
    receiver.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
