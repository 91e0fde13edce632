"""The demo's SFTP receiver: a customer's server on loopback, one account, one folder.

`python -m services.local.sftp_receiver --folder DIR --port N --host-key FILE --user NAME --authorized-keys FILE`
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from services.local.ports import LOOPBACK

asyncssh.set_log_level("ERROR")


@dataclass(frozen=True, slots=True)
class Account:
    """Who may log in, and how: by one of the public keys (OpenSSH lines) or by the password."""

    user: str
    public_keys: str = ""
    password: str | None = None


class _Login(asyncssh.SSHServer):
    def __init__(self, account: Account) -> None:
        self._account = account
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        if self._connection is not None and self._account.public_keys and username == self._account.user:
            self._connection.set_authorized_keys(asyncssh.import_authorized_keys(self._account.public_keys))
        return True

    def password_auth_supported(self) -> bool:
        return self._account.password is not None

    def validate_password(self, username: str, password: str) -> bool:
        return username == self._account.user and password == self._account.password


@asynccontextmanager
async def serving_sftp(
    folder: Path,
    account: Account,
    host_keys: Sequence[Path],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    files: type[asyncssh.SFTPServer] = asyncssh.SFTPServer,
) -> AsyncIterator[int]:
    """Serve the folder, and nothing outside of it; give the port. Raises OSError where that is taken."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)

    def sftp_files(channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return files(channel, chroot=str(folder).encode())

    server = await asyncssh.create_server(
        lambda: _Login(account),
        host,
        port,
        server_host_keys=[str(file) for file in host_keys],
        sftp_factory=sftp_files,
        config=[],
        allow_pty=False,
        agent_forwarding=False,
    )
    try:
        yield server.get_port()
    finally:
        server.close()


def ensure_key(file: Path) -> str:
    """Return the public half, as an OpenSSH line, of the ed25519 key in the file; made where there is none."""
    if file.exists():
        key = asyncssh.read_private_key(file)
    else:
        key = asyncssh.generate_private_key("ssh-ed25519")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(key.export_private_key())
    return " ".join(key.export_public_key().decode("ascii").split()[:2])


async def _main(options: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        ensure_key(options.host_key)
        account = Account(options.user, options.authorized_keys.read_text(encoding="ascii"))
        where, host_keys = {"host": options.host, "port": options.port}, [options.host_key]
        async with serving_sftp(options.folder, account, host_keys, **where) as port:
            print(f"sftp://{options.host}:{port}", flush=True)  # noqa: T201 - the command's answer
            await stopping.wait()
    except OSError as error:
        print(f"sftp_receiver: cannot serve on port {options.port}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the receiver until SIGTERM or SIGINT and return the exit code."""
    parser = argparse.ArgumentParser(prog="sftp_receiver", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the files arrive")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; default: %(default)s, loopback only")
    parser.add_argument("--port", type=int, required=True, help="port; 0 takes a free one")
    parser.add_argument("--host-key", type=Path, required=True, help="the server's private key; made where missing")
    parser.add_argument("--user", required=True, help="the account's name")
    parser.add_argument("--authorized-keys", type=Path, required=True, help="public keys that may log in")
    return asyncio.run(_main(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
