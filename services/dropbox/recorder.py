"""Writes down what happened, beside the sessions: none waits for the database, and none is held up while it is away."""

import asyncio
from datetime import datetime
from functools import partial
from typing import Any

from services.dropbox import file_store
from services.platform.clock import Clock
from services.platform.errors import Unavailable
from services.platform.metrics import DROPBOX_RECORDS_LOST
from services.platform.postgres import Patience, Pool, transaction

CAPACITY = 50_000
BATCH = 500


class Recorder:
    """Keeps what is to be written in memory until the database has it; beyond its capacity only the log has it."""

    def __init__(self, pool: Pool, patience: Patience, clock: Clock) -> None:
        self._pool = pool
        self._patience = patience
        self._clock = clock
        self._waiting: asyncio.Queue[tuple[str, tuple[Any, ...]]] = asyncio.Queue(CAPACITY)

    def logged_in(self, user_name: str, address: str) -> None:
        """Note a login."""
        self._put(file_store.LOGGED_IN, user_name, self._clock.now(), address)

    def deposited(self, organization_id: int, name: str, size_bytes: int) -> None:
        """Note a file that is in place."""
        self._put(file_store.DEPOSITED, organization_id, name, self._clock.now(), size_bytes)

    def fetched(self, organization_id: int, name: str, user_name: str) -> None:
        """Note a file that a customer has read to its end."""
        self._put(file_store.FETCHED, organization_id, name, self._clock.now(), user_name)

    def removed(self, organization_id: int, name: str, removed_by: str) -> None:
        """Note a file that is gone."""
        self._put(file_store.REMOVED, organization_id, name, self._clock.now(), removed_by)

    async def run(self) -> None:
        """Write until cancelled; ends, too, when the service stops while the database is away."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                await self._patience.postgres(partial(self._write, batch))
            except Unavailable:
                return
            finally:
                for _record in batch:
                    self._waiting.task_done()

    async def drain(self) -> None:
        """Wait until everything has been written; the deadline is the caller's."""
        await self._waiting.join()

    async def _write(self, records: list[tuple[str, tuple[Any, ...]]]) -> None:
        async with transaction(self._pool) as connection:
            for statement, arguments in records:
                await connection.execute(statement, *arguments)

    def _put(self, statement: str, *arguments: str | int | datetime) -> None:
        try:
            self._waiting.put_nowait((statement, arguments))
        except asyncio.QueueFull:
            DROPBOX_RECORDS_LOST.inc()
