"""The worker's wiring: what it needs, built once, closed in order."""

import asyncio
import os
from datetime import timedelta

import structlog

from services.exports.chunks import ChunkMaker
from services.exports.settings import ExportsSettings
from services.exports.store import ExportStore
from services.exports.sweeping import Sweeper
from services.exports.worker import Limits, Worker
from services.platform.clock import SystemClock
from services.platform.errors import Unavailable
from services.platform.health import Health
from services.platform.postgres import Patience, connect_pool, wait_or_stop

# A chunk of an hour's windows of a million meters is a long statement.
STATEMENT_SECONDS = 600

log = structlog.get_logger()


async def export(settings: ExportsSettings, health: Health, stopping: asyncio.Event) -> None:
    """Work on exports until told to stop."""
    patience, clock = Patience(health, stopping), SystemClock()
    os.nice(settings.export_nice)
    objects = await asyncio.to_thread(settings.store, makes_folder=True)
    url = settings.database_url.get_secret_value()
    # A pool of its own; small, because each export works on one connection and its bookkeeping on another.
    size = 2 * settings.export_concurrency + 1
    try:
        pool = await patience.postgres(
            lambda: connect_pool(url, max_size=size, statement_timeout_seconds=STATEMENT_SECONDS)
        )
    except Unavailable:
        return
    store = ExportStore(pool, settings.instance, timedelta(seconds=settings.export_lease_seconds))
    limits = Limits(
        settings.export_slice_seconds,
        timedelta(seconds=settings.export_lease_seconds),
        settings.export_step_seconds,
        settings.export_rest_share,
        settings.export_tries,
        timedelta(hours=settings.export_kept_hours),
    )
    maker = ChunkMaker(pool, store, objects, clock)
    worker = Worker(store, maker, objects, limits=limits, clock=clock, stopping=stopping)
    sweeper = Sweeper(store, objects, clock)
    sweeping = asyncio.create_task(sweeper.run(patience, settings.export_sweep_seconds))
    health.started()
    running: set[asyncio.Task[None]] = set()
    try:
        while not stopping.is_set():
            health.progress()
            while len(running) < settings.export_concurrency:
                claim = await patience.postgres(lambda: store.claim(clock.now()))
                if claim is None:
                    break
                running.add(asyncio.create_task(worker.work(claim)))
            if running:
                done, running = await asyncio.wait(
                    running, timeout=settings.export_look_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
            else:
                await wait_or_stop(stopping, settings.export_look_seconds)
    except Unavailable:
        # Only where we are told to stop while PostgreSQL is away.
        log.info("stopped_while_away")
    finally:
        if running:
            await asyncio.wait(running, timeout=max(1.0, settings.shutdown_deadline_seconds - 2.0))
        for task in (*running, sweeping):
            task.cancel()
        await asyncio.gather(*running, sweeping, return_exceptions=True)
        pool.terminate()
