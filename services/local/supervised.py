"""The product's processes under supervision: started, watched, started again when they end, stopped together."""

import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp

from services.local.ports import LOOPBACK, free_port
from services.local.processes import ChildProcess
from services.local.settings import REPOSITORY
from services.platform.lifecycle import EXIT_OPERATOR_NEEDED

RESTART_AFTER_S = 1.0


class Service:
    """One `python -m …` process and its health address."""

    def __init__(self, name: str, arguments: list[str], data_folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.restarts = 0
        self.health_address = f"http://{LOOPBACK}:{free_port()}"
        port = self.health_address.rpartition(":")[2]
        self.process = ChildProcess(
            name=name,
            command=[sys.executable, "-m", *arguments],
            log_file=data_folder / "logs" / f"{name}.log",
            pid_file=data_folder / "run" / f"{name}.pid",
            working_folder=REPOSITORY,
            environment={**os.environ, **environment, "METERPOST_HEALTH_PORT": port, "METERPOST_INSTANCE": name},
        )
        self._ended_at: float | None = None

    @property
    def needs_operator(self) -> bool:
        """Whether it stopped on purpose and waits for a person; starting it again would not help."""
        return self.process.exit_code == EXIT_OPERATOR_NEEDED

    @property
    def state(self) -> str:
        """What the board shows."""
        if self.process.is_running:
            return "running"
        return f"stopped, see {self.process.log_file}" if self.needs_operator else "starting again"

    def look(self) -> str | None:
        """Start the process again when it has ended; return a sentence about what happened, if anything."""
        if self.process.is_running:
            return None
        if self.needs_operator:
            is_told, self._ended_at = self._ended_at is not None, time.monotonic()
            return None if is_told else f"{self.name} stopped and needs an operator: see {self.process.log_file}"
        if self._ended_at is None:
            self._ended_at = time.monotonic()
            return f"{self.name} ended ({_how(self.process.exit_code)}) and is started again"
        if time.monotonic() - self._ended_at >= RESTART_AFTER_S:
            self._ended_at = None
            self.restarts += 1
            self.process.start()
        return None

    async def is_ready(self, session: aiohttp.ClientSession) -> bool:
        """Ask the readiness probe."""
        try:
            async with session.get(f"{self.health_address}/readyz") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def stop_all(services: list[Service], timeout_s: float) -> None:
    """Stop processes at the same time; those that do not end in time are killed."""
    if services:
        with ThreadPoolExecutor(len(services)) as pool:
            list(pool.map(lambda service: service.process.stop(timeout_s), services))


def _how(exit_code: int | None) -> str:
    return f"killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
