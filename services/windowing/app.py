"""Windowing's wiring: the look for what is due, the faust shell that spreads it, the closer that does it."""

import asyncio
import time

import structlog

from services.platform.errors import Unavailable
from services.platform.health import Health
from services.platform.kafka import Producer
from services.platform.kafka_admin import Admin
from services.platform.postgres import Patience, connect_pool
from services.platform.topics import INGEST_PROGRESS, READING_TOPICS, WINDOWS_CLOSED, WINDOWS_DUE
from services.windowing.closer import Closer
from services.windowing.faust_shell import FaustShell
from services.windowing.looker import Looker
from services.windowing.retention import MeasurementKeeper
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore

STATEMENT_SECONDS = 120.0
UNSERVED_SECONDS = 120.0
"""Announced windows that nobody closes for so long, while this process hears nothing, mean that its shell hangs."""
PAUSE_SECONDS = 0.2
"""Between two looks, however often the doorbell rings."""

log = structlog.get_logger()


async def main(settings: WindowingSettings, health: Health, stopping: asyncio.Event) -> None:
    """Run windowing until told to stop."""
    patience = Patience(health, stopping)
    url = settings.database_url.get_secret_value()
    kafka = settings.kafka_access()
    producer, admin = Producer(kafka, client=settings.instance), Admin(kafka)
    keeping: asyncio.Task[None] | None = None
    try:
        pool = await patience.postgres(
            lambda: connect_pool(
                url, max_size=4 + settings.closing_connections, statement_timeout_seconds=STATEMENT_SECONDS
            )
        )
    except Unavailable:
        return
    try:
        await patience.kafka(producer.start)
        await patience.kafka(admin.start)
        topics = tuple(settings.topic(name) for name in READING_TOPICS)
        known_partitions: set[str] = set()
        store = WindowStore(pool, settings, topics, known_partitions)
        await patience.postgres(store.frontiers)
        closer = Closer(settings, store, producer, patience)
        looker = Looker(settings, store, admin, producer, closer, patience)
        health.started()
        keeper = MeasurementKeeper(pool, settings.keep, known_partitions)
        keeping = asyncio.create_task(keeper.run(stopping))
        await Windowing(settings, admin, closer, looker, patience).run()
    except Unavailable:
        # Only a stop ends our patience: there is nothing left to do for this process.
        log.info("stopped_while_waiting")
    finally:
        if keeping is not None:
            keeping.cancel()
        await admin.stop()
        await producer.stop()
        pool.terminate()


class Windowing:
    """The two loops: looking what is due, and taking part in the group that closes it."""

    def __init__(
        self, settings: WindowingSettings, admin: Admin, closer: Closer, looker: Looker, patience: Patience
    ) -> None:
        self._settings = settings
        self._admin = admin
        self._closer = closer
        self._looker = looker
        self._patience = patience
        self._doorbell = asyncio.Event()
        self._last_heard = time.monotonic()

    async def run(self) -> None:
        """Run both loops; the first that fails ends the other."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look_on())
                group.create_task(self._take_part())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _look_on(self) -> None:
        stopping = self._patience.stopping
        while not stopping.is_set():
            self._doorbell.clear()
            await self._looker.look()
            if not self._hangs():
                self._patience.health.progress()
            await _first_of(stopping, self._doorbell, self._settings.look_every_seconds)
            await _first_of(stopping, stopping, PAUSE_SECONDS)

    def _hangs(self) -> bool:
        since = self._looker.unserved_since
        return since is not None and time.monotonic() - max(since, self._last_heard) > UNSERVED_SECONDS

    async def _take_part(self) -> None:
        while not self._patience.stopping.is_set():
            await self._patience.kafka(self._run_shell)

    async def _run_shell(self) -> None:
        counts = {}
        for name in (INGEST_PROGRESS, WINDOWS_DUE, WINDOWS_CLOSED):
            counts[name] = len(await self._admin.partitions([self._settings.topic(name)]))
        shell = FaustShell(
            self._settings,
            partitions=counts,
            on_progress=self._doorbell.set,
            on_due=self._closer.close,
            last_heard=self._hear,
        )
        await shell.run(self._patience.stopping)

    def _hear(self, now: float) -> None:
        self._last_heard = now


async def _first_of(one: asyncio.Event, other: asyncio.Event, timeout_s: float) -> None:
    """Return when either event is set, or after `timeout_s`."""
    tasks = [asyncio.ensure_future(one.wait()), asyncio.ensure_future(other.wait())]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
