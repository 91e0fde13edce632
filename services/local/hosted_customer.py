"""The demo's customer of the hosted folder: logs in by key and fetches each file once; what lies there stays there.

`python -m services.local.hosted_customer --port N --user NAME --key FILE --host-keys FILE --folder DIR`
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncssh

from services.local.ports import LOOPBACK

LOOK_EVERY_S = 2.0
_DEADLINE_S = 20.0
asyncssh.set_log_level("ERROR")


async def fetch_new(options: argparse.Namespace) -> int:
    """Fetch what is not in the customer's folder yet; return how many files came. Raises asyncssh.Error, OSError."""
    host_keys = [asyncssh.import_public_key(line) for line in options.host_keys.read_text().splitlines()]
    connection = await asyncssh.connect(
        options.host,
        options.port,
        username=options.user,
        client_keys=[str(options.key)],
        known_hosts=(host_keys, [], []),
        config=None,
        agent_path=None,
    )
    count = 0
    async with connection, connection.start_sftp_client() as files:
        there = {name for name in await files.listdir("/") if not name.startswith(".")}
        for name in sorted(there - {file.name for file in options.folder.iterdir()}):
            partial = options.folder / f".{name}.partial"
            await files.get(f"/{name}", partial)
            partial.replace(options.folder / name)
            count += 1
    return count


async def _main(options: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    options.folder.mkdir(parents=True, exist_ok=True)
    while not stopping.is_set():
        try:
            async with asyncio.timeout(_DEADLINE_S):
                count = await fetch_new(options)
            if count:
                print(f"fetched {count} files", flush=True)  # noqa: T201 - the command's answer
        except (asyncssh.Error, OSError) as error:
            # The folder is not served yet, or not at the moment: the next look may find it.
            print(f"not now: {error}", file=sys.stderr, flush=True)  # noqa: T201
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await stopping.wait()
        except TimeoutError:
            continue
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch until SIGTERM or SIGINT and return the exit code."""
    parser = argparse.ArgumentParser(prog="hosted_customer", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="where the hosted folder is; default: %(default)s")
    parser.add_argument("--port", type=int, required=True, help="its port")
    parser.add_argument("--user", required=True, help="the account's name")
    parser.add_argument("--key", type=Path, required=True, help="the private key to log in with")
    parser.add_argument("--host-keys", type=Path, required=True, help="the server's public keys, one a line")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go")
    return asyncio.run(_main(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
