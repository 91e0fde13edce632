"""`python -m services.local`: the whole product on this machine, until Ctrl-C."""

import asyncio
import gc
import os
import signal
import sys
import traceback
from contextlib import suppress

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from rich.console import Console

from services.cli.places import without_password
from services.cli.show import ReaderGoneError, drop_output
from services.local.board import Board
from services.local.errors import LocalServerError
from services.local.folder_lock import FolderLock
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.tally import Numbers, Tally
from services.platform.clock import SystemClock
from services.platform.command_line import settings_text
from services.platform.errors import MeterpostError, Unavailable, UserError
from services.platform.settings import load

LOOK_EVERY_S = 0.5
HELP = """\
python -m services.local, or make run: the whole product on this machine, until Ctrl-C.

It says the addresses of what it starts. Everything is kept in the data folder; the next start goes on from there. It
ends by Ctrl-C and SIGTERM, and when nobody reads any more what it says.
Exit codes: 0 ended when told to; 2 a setting or the folder is wrong; 1 something could not be started, or failed.
"""
CANCEL_S = 0.5


def main() -> int:
    """Run the product, or answer a command line; return the exit code."""
    gc.freeze()
    gc.enable()
    return _told(sys.argv[1:]) if len(sys.argv) > 1 else _run_product()


def _run_product() -> int:
    """Start everything, show the board, end everything."""
    console = _Console()
    try:
        settings = load(LocalSettings)
        settings = settings.model_copy(update={"data_folder": settings.data_folder.resolve()})
        settings.data_folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(settings.data_folder)
        lock.acquire_or_fail()
    except (UserError, LocalServerError) as error:
        print(f"meterpost: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    except OSError as error:
        print(f"meterpost: the data folder cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return 2
    stack = Stack(settings, SystemClock(), lambda line: console.print(line, highlight=False, markup=False))
    try:
        return asyncio.run(_run(stack, console))
    except ReaderGoneError:
        return 0
    except (LocalServerError, MeterpostError) as error:
        print(f"meterpost: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:  # noqa: BLE001 - a person gets a sentence, the file the rest
        file = settings.data_folder / "crash.log"
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        print(f"meterpost: an error of ours: {error!r}. The details are in {file}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        # A second Ctrl-C must not leave processes behind: ending takes seconds, each step has its deadline.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with suppress(OSError, ReaderGoneError):
            console.print("ending", highlight=False)
        try:
            stack.stop()
        finally:
            if console.is_alone:
                drop_output()


class _Console(Console):
    """Where whoever reads what we say has gone (`| head`), everything ends as by Ctrl-C."""

    is_alone = False

    def on_broken_pipe(self) -> None:
        """Tell that nobody reads."""
        self.is_alone = True
        raise ReaderGoneError


def _told(arguments: list[str]) -> int:
    """Answer a command line: what there is to choose, variables choose."""
    is_help = arguments in (["--help"], ["-h"])
    if not is_help:
        print(f"meterpost: nothing is known of {arguments[0]!r} (--help shows what there is)", file=sys.stderr)  # noqa: T201
        return 2
    console = _Console()
    try:
        console.print(HELP, markup=False, highlight=False, soft_wrap=True)
        console.print(settings_text(LocalSettings), markup=False, highlight=False, soft_wrap=True)
    except ReaderGoneError:
        drop_output()
    return 0


async def _run(stack: Stack, console: Console) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    told = asyncio.ensure_future(stopping.wait())
    serving = asyncio.ensure_future(_serve(stack, console))
    await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    # Whatever it waits for at this moment: a server that starts, a thread, a database that does not answer.
    stack.break_off()
    serving.cancel()
    await asyncio.wait({serving}, timeout=CANCEL_S)
    if serving.done() and not serving.cancelled():
        serving.exception()  # a consequence of the breaking off, and of no interest
    return 0


async def _serve(stack: Stack, console: Console) -> None:
    """Start everything, then show the board for ever."""
    await stack.start()
    assert stack.pool is not None  # noqa: S101 - it has been started
    tally, numbers = Tally(), Numbers(stack.clock.now())
    with Board(console, _addresses(stack)) as board:
        while True:
            now = stack.clock.now()
            for event in await stack.look():
                board.note(event, now)
            with suppress(Unavailable):  # the last ones are still shown
                numbers = await tally.take(stack.pool, now)
            board.show(numbers, stack.services)
            await asyncio.sleep(LOOK_EVERY_S if numbers.parts_delivered == 0 else 1.0)


def _addresses(stack: Stack) -> list[tuple[str, str]]:
    endpoints = stack.endpoints
    assert endpoints is not None  # noqa: S101 - it has been started
    return [
        ("Kafka", endpoints.kafka),
        ("PostgreSQL", without_password(endpoints.database)),
        ("HTTP API", f"{endpoints.api_url} (a client's id and secret: {endpoints.api_client_file})"),
        ("HTTPS receiver", endpoints.receiver_url),
        *(
            (f"{name.upper()} receiver", f"{name}://{one['user']}@{one['host']}:{one['port']}")
            for name, one in endpoints.file_receivers.items()
        ),
        ("hosted folder", "sftp://{user}@{host}:{port}".format(**endpoints.hosted_folder)),
        ("deliveries arrive in", f"{endpoints.receiver_folder} (JSON), ../sftp, ../ftps and ../hosted (CSV)"),
        ("addresses for programs", str(stack.folder / "endpoints.json")),
        ("logs", str(stack.folder / "logs")),
        ("the command", os.path.relpath(sys.executable.replace("python", "meterpost").removesuffix("3"))),
    ]


if __name__ == "__main__":
    sys.exit(main())
