"""Ingest's wiring: what the loop needs, built once, closed in order."""

import asyncio
from datetime import date, timedelta

import structlog

from services.ingest.day_partitions import DayKeeper
from services.ingest.doorbell import Doorbell
from services.ingest.loop import Edges, Ingest
from services.ingest.settings import IngestSettings
from services.ingest.standing import Standing
from services.ingest.store import IngestStore
from services.ingest.ticks import Ticker
from services.platform.errors import Superseded, Unavailable
from services.platform.health import Health
from services.platform.kafka import GroupConsumer, Producer
from services.platform.kafka_admin import Admin
from services.platform.metrics import INGEST_SUPERSEDED
from services.platform.postgres import Patience, connect_pool
from services.platform.topics import INGEST_PROGRESS, READINGS_BRIDGE, READINGS_LOGGER

WATCH_SECONDS = 5
# Two that write, one that asks what must be known meanwhile, one that keeps the days, one that looks at gaps.
CONNECTIONS = 5
log = structlog.get_logger()


async def main(settings: IngestSettings, health: Health, stopping: asyncio.Event) -> None:
    """Run ingest until told to stop."""
    patience = Patience(health, stopping)
    url = settings.database_url.get_secret_value()
    kafka = settings.kafka_access()
    topics = (settings.topic(READINGS_BRIDGE), settings.topic(READINGS_LOGGER))
    try:
        pool = await patience.postgres(
            lambda: connect_pool(url, max_size=CONNECTIONS, statement_timeout_seconds=settings.database_timeout_seconds)
        )
    except Unavailable:
        return
    keep = timedelta(days=settings.raw_retention_days + settings.raw_retention_margin_days)
    known_days: set[date] = set()
    keeper = DayKeeper(pool, topics, keep, settings.keep_rejected, known_days)
    keeping_days = asyncio.create_task(keeper.run(stopping))
    standing = Standing(settings.instance)
    telling = asyncio.create_task(standing.run(kafka, pool, topics))
    producer = Producer(kafka, client=settings.instance)
    try:
        await patience.kafka(producer.start)
        ticked = await _ticked_topics(settings, topics, patience)
        while not stopping.is_set():
            consumer = GroupConsumer(
                settings.kafka_access(),
                group=settings.group("ingest"),
                topics=topics,
                client=settings.instance,
                session_timeout_ms=settings.session_seconds * 1000,
            )
            await patience.kafka(consumer.start)
            edges = Edges(
                consumer,
                IngestStore(pool, known_days=known_days),
                Ticker(producer, consumer, ticked),
                Doorbell(producer, settings.topic(INGEST_PROGRESS), timedelta(seconds=settings.grace_seconds)),
                standing,
            )
            watching = asyncio.create_task(_watch(consumer, health))
            try:
                await Ingest(settings, edges, patience).run()
            except Superseded as error:
                INGEST_SUPERSEDED.inc()
                log.warning("superseded", error=str(error), action="leave the group and join again")
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await consumer.stop()
    except Unavailable:
        # Only a stop ends our patience: there is nothing left to do for this process.
        log.info("stopped_while_waiting")
    finally:
        keeping_days.cancel()
        telling.cancel()
        await producer.stop()
        pool.terminate()
        await asyncio.gather(keeping_days, telling, return_exceptions=True)


async def _watch(consumer: GroupConsumer, health: Health) -> None:
    """Tell the readiness probe whether Kafka answers: a consumer whose broker is away just receives nothing."""
    while True:
        if await consumer.answers():
            health.answered("Kafka")
        else:
            health.waits_for("Kafka")
        await asyncio.sleep(WATCH_SECONDS)


async def _ticked_topics(settings: IngestSettings, topics: tuple[str, ...], patience: Patience) -> frozenset[str]:
    """Return the topics on whose idle partitions we append ticks."""
    if settings.ticks != "auto":
        return frozenset(topics if settings.ticks == "on" else ())
    admin = Admin(settings.kafka_access())
    await patience.kafka(admin.start)
    try:
        types = await patience.kafka(lambda: admin.time_types(topics))
    finally:
        await admin.stop()
    return frozenset(topic for topic, time_type in types.items() if time_type == "LogAppendTime")
