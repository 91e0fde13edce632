"""Hears that windows were closed. Only a doorbell: without it the tables are looked into a second later."""

import asyncio

import structlog

from services.delivery.settings import DeliverySettings
from services.platform.errors import MeterpostError
from services.platform.kafka import GroupConsumer
from services.platform.kafka_refusal import KafkaRefusedError
from services.platform.postgres import wait_or_stop
from services.platform.topics import WINDOWS_CLOSED

POLL_MS = 500
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
log = structlog.get_logger()


async def listen(settings: DeliverySettings, transport: str, bell: asyncio.Event, stopping: asyncio.Event) -> None:
    """Set `bell` whenever windows were closed, until told to stop. Kafka's absence is logged and waited out.

    Raises KafkaRefusedError where Kafka has refused us from the start; later on it is waited out, too.
    """
    wait_seconds = FIRST_WAIT_SECONDS
    was_taken = False
    while not stopping.is_set():
        consumer = GroupConsumer(
            settings.kafka_access(),
            group=settings.group(f"delivery-{transport}"),
            topics=[settings.topic(WINDOWS_CLOSED)],
            client=settings.instance,
        )
        try:
            await consumer.start()
            was_taken = True
            wait_seconds = FIRST_WAIT_SECONDS
            while not stopping.is_set():
                batches = await consumer.poll(timeout_ms=POLL_MS)
                if batches:
                    bell.set()
                    await consumer.commit({(b.topic, b.partition): b.records[-1].offset + 1 for b in batches})
        except MeterpostError as error:
            if isinstance(error, KafkaRefusedError) and not was_taken:
                raise
            log.warning("doorbell_silent", error=str(error), retry_in_seconds=wait_seconds)
            await wait_or_stop(stopping, wait_seconds)
            wait_seconds = min(wait_seconds * 2, LONGEST_WAIT_SECONDS)
        finally:
            await consumer.stop()
