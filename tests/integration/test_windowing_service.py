"""The windowing service as processes, on the real broker and database."""

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta

import msgspec

from services.core.messages import IngestProgress, WindowsClosed, WindowsDue, encode
from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from services.platform.kafka import GroupConsumer
from services.platform.topics import INGEST_PROGRESS, READINGS_BRIDGE, READINGS_LOGGER, WINDOWS_CLOSED, WINDOWS_DUE
from tests.support.closing import (
    UTILITIES,
    expected_rows,
    seed_meters,
    store_progress,
    store_versions,
    stored_rows,
    version,
)
from tests.support.platform import Platform
from tests.support.polling import eventually, eventually_async

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
GRACE = 5 * MINUTE
VERSIONS = [version(meter, T0 + n * MINUTE, meter * 100 + n) for n in range(180) for meter in UTILITIES]
SERVICE = "services.windowing"


async def prepare(platform: Platform) -> None:
    await platform.declare_topics()
    await seed_meters(platform.database_url, UTILITIES)
    await store_versions(platform.database_url, VERSIONS)


async def hear(platform: Platform, watermark: datetime | None, *, besides: tuple[str, int] | None = None) -> None:
    """Say that ingest has stored every partition up to `watermark`, `besides` one of them."""
    for name in (READINGS_LOGGER, READINGS_BRIDGE):
        for partition in (0, 1):
            if (name, partition) != besides:
                topic = platform.topic(name)
                await store_progress(
                    platform.database_url, watermark, first_arrival=T0, topic=topic, partition=partition
                )


async def ring(platform: Platform, watermark: datetime) -> None:
    event = IngestProgress(platform.topic(READINGS_LOGGER), 0, 17, watermark)
    async with platform.producer() as producer:
        await producer.send(platform.topic(INGEST_PROGRESS), encode(event), key=b"readings.logger/0")


async def closed_until(platform: Platform, resolution: int) -> datetime | None:
    rows = await platform.fetch("SELECT closed_until FROM window_closed WHERE resolution_minutes = $1", resolution)
    return rows[0]["closed_until"] if rows else None


async def closed(platform: Platform, resolution: int, until: datetime, timeout_s: float = 30) -> None:
    async def reached() -> bool:
        return await closed_until(platform, resolution) == until

    await eventually_async(reached, timeout_s, because=f"{resolution}-minute windows closed until {until}")


async def assert_everything_closed(platform: Platform) -> None:
    for resolution in (1, 5, 15, 60):
        await closed(platform, resolution, T0 + 180 * MINUTE)
        assert await stored_rows(platform.database_url, resolution) == expected_rows(
            VERSIONS, resolution, GRACE, UTILITIES
        )


async def closed_events(platform: Platform, resolution: int, until: datetime) -> list[WindowsClosed]:
    """Read windows.closed from its beginning until it says that `until` is reached."""
    topic = platform.topic(WINDOWS_CLOSED)
    consumer = GroupConsumer(platform.kafka, group=platform.prefix + "read", topics=[topic], client="test")
    await consumer.start()
    events: list[WindowsClosed] = []

    async def seen() -> bool:
        for batch in await consumer.poll(timeout_ms=100):
            events.extend(
                msgspec.json.decode(record.value, type=WindowsClosed) for record in batch.records if record.value
            )
        return WindowsClosed(resolution, until) in events

    try:
        await eventually_async(seen, 20, because="the event on windows.closed")
    finally:
        await consumer.stop()
    return [event for event in events if event.resolution_minutes == resolution]


async def test_windows_close_as_the_watermark_moves_and_one_event_tells_each_step(platform: Platform) -> None:
    await prepare(platform)
    await hear(platform, T0 + 10 * MINUTE + timedelta(microseconds=1))
    # So slow a look that only the doorbell can have moved things on.
    service = platform.start(SERVICE, environment={"METERPOST_LOOK_EVERY_SECONDS": "30"})
    await closed(platform, 5, T0 + 5 * MINUTE)
    await hear(platform, T0 + 186 * MINUTE)
    await ring(platform, T0 + 186 * MINUTE)
    await assert_everything_closed(platform)
    events = await closed_events(platform, 60, T0 + 180 * MINUTE)
    assert [event.closed_until for event in events] == sorted({event.closed_until for event in events})
    service.stop(timeout_s=6)
    assert service.exit_code == 0


async def test_a_partition_that_was_not_heard_holds_everything_open(platform: Platform) -> None:
    await prepare(platform)
    held = (READINGS_BRIDGE, 1)
    await hear(platform, T0 + 186 * MINUTE, besides=held)
    service = platform.start(SERVICE, environment={"METERPOST_LOOK_EVERY_SECONDS": "0.1"})
    eventually(lambda: "partitions_not_heard" in service.log_tail(40), 20, because="the service says what it waits for")
    await ring(platform, T0 + 186 * MINUTE)
    assert await platform.value("SELECT count(*) FROM window_frontier") == 0
    await store_progress(
        platform.database_url, T0 + 8 * MINUTE, first_arrival=T0, topic=platform.topic(held[0]), partition=held[1]
    )
    await closed(platform, 1, T0 + 2 * MINUTE)
    assert await platform.value("SELECT count(*) FROM measurement WHERE window_start >= $1", T0 + 2 * MINUTE) == 0
    await hear(platform, T0 + 186 * MINUTE)
    await assert_everything_closed(platform)


async def test_a_partition_that_was_added_holds_everything_open(platform: Platform) -> None:
    await prepare(platform)
    await hear(platform, T0 + 8 * MINUTE)
    platform.start(SERVICE, environment={"METERPOST_LOOK_EVERY_SECONDS": "0.1"})
    await closed(platform, 1, T0 + 2 * MINUTE)
    async with platform.admin() as admin:
        await admin.add_partitions(platform.topic(READINGS_LOGGER), 3)
    await hear(platform, T0 + 186 * MINUTE)
    await ring(platform, T0 + 186 * MINUTE)
    topic = platform.topic(READINGS_LOGGER)
    await store_progress(platform.database_url, T0 + 9 * MINUTE, first_arrival=T0, topic=topic, partition=2)
    await closed(platform, 1, T0 + 3 * MINUTE)
    await store_progress(platform.database_url, T0 + 186 * MINUTE, first_arrival=T0, topic=topic, partition=2)
    await assert_everything_closed(platform)


async def test_two_workers_killed_again_and_again_close_what_one_would(platform: Platform) -> None:
    await prepare(platform)
    settings = {"METERPOST_LOOK_EVERY_SECONDS": "0.2", "METERPOST_REPEAT_AFTER_SECONDS": "1"}
    workers = [platform.start(SERVICE, environment=settings) for _ in range(2)]
    for step in range(1, 4):
        await hear(platform, T0 + 62 * step * MINUTE)
        victim = workers.pop(0)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        workers.append(platform.start(SERVICE, environment=settings))
        # The dead one's share is taken over when its session is over, or by the announcement of the next look.
        await closed(platform, 1, T0 + (62 * step - 6) * MINUTE, timeout_s=60)
    await assert_everything_closed(platform)
    assert all(worker.is_running for worker in workers)


async def test_messages_that_are_rubbish_doubled_or_too_early_change_nothing(platform: Platform) -> None:
    await prepare(platform)
    await hear(platform, T0 + 8 * MINUTE)
    service = platform.start(SERVICE, environment={"METERPOST_LOOK_EVERY_SECONDS": "30"})
    await closed(platform, 1, T0 + 2 * MINUTE)
    async with platform.producer() as producer:
        topic = platform.topic(WINDOWS_DUE)
        too_early = [encode(WindowsDue(1, bucket, T0 + 100 * MINUTE)) for bucket in range(8)]
        unknown = [encode(WindowsDue(7, 0, T0)), encode(WindowsDue(1, 99, T0)), b"rubbish", b"", b"{}"]
        for message in [*unknown, *too_early, *too_early]:
            await producer.send(topic, message, key=b"1/0")
        await hear(platform, T0 + 9 * MINUTE)
        for bucket in range(8):
            await producer.send(topic, encode(WindowsDue(1, bucket, T0 + 3 * MINUTE)), key=b"1/0")
    await closed(platform, 1, T0 + 3 * MINUTE)
    assert await platform.value("SELECT count(*) FROM measurement WHERE window_start >= $1", T0 + 3 * MINUTE) == 0
    assert service.is_running


async def test_postgres_and_kafka_may_go_away_and_the_same_process_goes_on(
    platform: Platform, postgres_server: PostgresServer, kafka_server: KafkaServer
) -> None:
    await prepare(platform)
    await hear(platform, T0 + 66 * MINUTE)
    service = platform.start(SERVICE, environment={"METERPOST_LOOK_EVERY_SECONDS": "0.5"})
    await closed(platform, 60, T0 + 60 * MINUTE)
    await asyncio.to_thread(postgres_server.kill)
    eventually(lambda: "server_away" in service.log_tail(40), 20, because="the service notices")
    await asyncio.to_thread(postgres_server.start)
    await hear(platform, T0 + 126 * MINUTE)
    await closed(platform, 60, T0 + 120 * MINUTE)
    await asyncio.to_thread(kafka_server.kill)
    await hear(platform, T0 + 186 * MINUTE)
    eventually(lambda: "Kafka" in service.log_tail(40), 30, because="the service notices")
    await asyncio.to_thread(kafka_server.start)
    for resolution in (1, 5, 15, 60):
        await closed(platform, resolution, T0 + 180 * MINUTE, timeout_s=60)
    await assert_everything_closed(platform)
    assert service.is_running


async def test_another_number_of_buckets_stops_the_service_with_a_clear_word(platform: Platform) -> None:
    await prepare(platform)
    await hear(platform, T0 + 8 * MINUTE)
    first = platform.start(SERVICE)
    await closed(platform, 1, T0 + 2 * MINUTE)
    first.stop(timeout_s=6)
    second = platform.start(SERVICE, environment={"METERPOST_BUCKETS": "4"})
    eventually(lambda: not second.is_running, 20, because="the service refuses")
    assert second.exit_code == 4
    assert "set METERPOST_BUCKETS to 8" in second.log_tail(40)
