"""Delivery's wiring: what the dispatcher needs, built once, closed in order."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from services.core.retry import RetryPolicy
from services.delivery.catalog_changes import CatalogChanges
from services.delivery.catalog_parts import CatalogStore
from services.delivery.circuits import Circuits
from services.delivery.connection_tests import ConnectionTests
from services.delivery.dispatcher import Dispatcher
from services.delivery.doorbell import listen
from services.delivery.giving_up import GiveUps
from services.delivery.interval_counts import IntervalCounts
from services.delivery.job_health import HealthRules
from services.delivery.job_store import JobStore
from services.delivery.mailing import Mailer
from services.delivery.notice_posting import Poster
from services.delivery.notifier import Notifier
from services.delivery.request_store import RequestStore
from services.delivery.requests import Requests
from services.delivery.row_store import RowStore
from services.delivery.run_store import RunStore
from services.delivery.sending import Freezer, Sender
from services.delivery.settings import DeliverySettings
from services.delivery.slots import Slots
from services.delivery.transports import TRANSPORTS
from services.delivery.transports.base import Deadlines, Means, Transport
from services.delivery.worker import Limits, Stores, Worker
from services.platform.clock import Clock, SystemClock
from services.platform.errors import Unavailable
from services.platform.health import Health
from services.platform.postgres import Patience, Pool, connect_pool

# Of the time to stop, so much is kept for closing connections after the last slice.
CLOSING_SECONDS = 3.0

Main = Callable[[DeliverySettings, Health, asyncio.Event], Awaitable[None]]


def service(transport: str) -> Main:
    """Return the main function of the process that serves one transport."""

    async def main(settings: DeliverySettings, health: Health, stopping: asyncio.Event) -> None:
        await deliver(transport, settings, health, stopping)

    return main


async def deliver(name: str, settings: DeliverySettings, health: Health, stopping: asyncio.Event) -> None:
    """Deliver the jobs of one transport until told to stop."""
    patience = Patience(health, stopping)
    clock = SystemClock()
    url = settings.database_url.get_secret_value()
    try:
        pool = await patience.postgres(lambda: connect_pool(url, max_size=settings.database_connections))
    except Unavailable:
        return
    rules = HealthRules(
        timedelta(hours=settings.retry_window_hours),
        timedelta(minutes=settings.failing_minutes),
        settings.failed_runs,
    )
    changes = CatalogChanges(pool)
    stores = Stores(
        JobStore(pool, name, settings.instance, rules),
        RunStore(pool, rules),
        RowStore(pool, changes=changes),
        IntervalCounts(pool, changes=changes),
    )
    try:
        installation_id = await patience.postgres(stores.runs.installation_id)
    except Unavailable:
        pool.terminate()
        return
    deadlines = Deadlines(timedelta(seconds=settings.connect_seconds), timedelta(seconds=settings.answer_seconds))
    means = Means(deadlines, clock, settings.outbound(), settings.hosted_folder())
    transport = TRANSPORTS[name](means)
    dispatcher = build(name, transport, pool, stores, installation_id, settings, clock, patience)
    listening = asyncio.create_task(listen(settings, name, dispatcher.bell, stopping))
    listening.add_done_callback(lambda _task: stopping.set())  # told to stop, or Kafka refuses us: nobody waits for it
    poster = Poster(pool, settings.vault(), means)
    mailer = Mailer(settings)
    notifier = Notifier(pool, mailer, poster, installation_id, clock)
    notifying = asyncio.create_task(notifier.run(patience, settings.look_seconds))
    tests = ConnectionTests(name, transport, pool, settings.vault(), clock)
    testing = asyncio.create_task(tests.run(patience))
    health.started()
    try:
        await dispatcher.run(finish_seconds=max(1.0, settings.shutdown_deadline_seconds - CLOSING_SECONDS))
    finally:
        # A notice that is on its way is recorded, lest it is sent again.
        await asyncio.wait({notifying}, timeout=CLOSING_SECONDS / 3)
        for task in (listening, notifying, testing):
            task.cancel()
        await asyncio.gather(listening, notifying, testing, return_exceptions=True)
        await poster.aclose()
        mailer.close()
        await transport.aclose()
        pool.terminate()
    if not listening.cancelled():
        listening.result()


def build(
    name: str,
    transport: Transport,
    pool: Pool,
    stores: Stores,
    installation_id: str,
    settings: DeliverySettings,
    clock: Clock,
    patience: Patience,
) -> Dispatcher:
    """Put the parts together."""
    lease = timedelta(seconds=settings.lease_seconds)
    at_once = max(1, settings.database_connections // 3)
    freezer = Freezer(stores.rows, CatalogStore(pool), transport, at_once=at_once)
    policy = RetryPolicy(
        timedelta(seconds=settings.first_retry_seconds), timedelta(seconds=settings.longest_retry_seconds)
    )
    circuits = Circuits()
    worker = Worker(
        name,
        transport,
        stores,
        freezer=freezer,
        sender=Sender(installation_id, freezer, transport, policy, clock),
        limits=Limits(settings.slice_seconds, lease, settings.planned_runs),
        clock=clock,
        patience=patience,
        requests=Requests(RequestStore(pool), stores.jobs, stores.rows, clock, settings.planned_runs),
        circuits=circuits,
        vault=settings.vault(),
        pool=pool,
    )
    return Dispatcher(
        stores.jobs,
        worker,
        transport=name,
        lease=lease,
        look_seconds=settings.look_seconds,
        clock=clock,
        patience=patience,
        slots=Slots(settings.concurrency, settings.destination_concurrency, circuits, _own_addresses(settings)),
        give_ups=GiveUps(pool, name),
    )


def _own_addresses(settings: DeliverySettings) -> list[str]:
    hosted = settings.hosted_folder()
    return [] if hosted is None else [f"{hosted.host}:{hosted.port}"]
