"""How a service runs and stops: signals, one task group, an ordered end under a deadline."""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from services.platform.errors import MeterpostError, OperatorNeeded, UserError
from services.platform.health import Health
from services.platform.settings import ServiceSettings, load
from services.platform.telemetry import configure_logging, start_health_server

LAST_RESORT_SECONDS = 1.5
EXIT_BAD_SETTINGS = 2
EXIT_FAILED = 1
EXIT_OPERATOR_NEEDED = 4

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)
Service = Callable[[SettingsT, Health, asyncio.Event], Awaitable[None]]
"""Runs until the event is set, then ends in order and returns; raises when it cannot go on."""

log = structlog.get_logger()


def default_instance() -> str:
    """Return a name for this process that is unique enough for tables and logs."""
    return f"{socket.gethostname()}-{os.getpid()}"


def run(service: str, kind: type[SettingsT], main: Service[SettingsT], *, is_check: bool) -> int:
    """Run a service to its end, or only check its settings, and return the process's exit code.

    Called by each `__main__`, which has read the command line (`command_line.py`).
    """
    # No search for cycles need go through what was imported, nor the interpreter's last one.
    gc.freeze()
    gc.enable()  # see lean_imports
    try:
        settings = load(kind)
    except UserError as error:
        print(f"{service}: {error}", file=sys.stderr)  # noqa: T201 - logging is not configured yet
        return EXIT_BAD_SETTINGS
    if is_check:
        print(f"{service}: the settings are sound")  # noqa: T201 - a command's answer
        return 0
    if not settings.instance:
        settings = settings.model_copy(update={"instance": default_instance()})
    configure_logging(service, settings.instance, settings.log_level, settings.log_format)
    return asyncio.run(_run(settings, main))


async def _run(settings: SettingsT, main: Service[SettingsT]) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        # Whatever holds the process, a thread in a system call, a server that is frozen: it keeps its deadline.
        last_resort = threading.Timer(settings.shutdown_deadline_seconds + LAST_RESORT_SECONDS, _end_at_once)
        last_resort.daemon = True
        last_resort.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    health = Health()
    runner, port = await start_health_server(health, settings.health_host, settings.health_port)
    log.info("started", health_port=port)
    task = asyncio.ensure_future(main(settings, health, stopping))
    try:
        return await _until_stopped(task, stopping, settings.shutdown_deadline_seconds)
    finally:
        await runner.cleanup()


def _end_at_once() -> None:
    log.error("stop_deadline_passed", action="end at once")
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


async def _until_stopped(task: asyncio.Future[None], stopping: asyncio.Event, deadline_s: int) -> int:
    told = asyncio.ensure_future(stopping.wait())
    both: set[asyncio.Future[Any]] = {task, told}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not task.done():
        await asyncio.wait({task}, timeout=deadline_s)
    if not task.done():
        log.error("stop_deadline_passed", deadline_seconds=deadline_s)
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        return EXIT_FAILED
    error = task.exception()
    if error is None:
        log.info("stopped")
        return 0
    if isinstance(error, OperatorNeeded):
        log.error("operator_needed", error=str(error))
        return EXIT_OPERATOR_NEEDED
    if isinstance(error, MeterpostError):
        log.error("failed", error=str(error))
        # A server that refuses the user or the password says so only when it is asked.
        return EXIT_BAD_SETTINGS if isinstance(error, UserError) else EXIT_FAILED
    log.error("failed", error=repr(error), exc_info=error)
    return EXIT_FAILED
