"""Partitions that are added while everything runs."""

from datetime import UTC, datetime, timedelta

from services.core.windows import platform_watermark
from services.platform.kafka import Partition, acknowledged
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.support.exactness import assert_exact
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def append(platform: Platform, partition: Partition, meter_input: int, minute: int) -> None:
    """Append one reading of a minute to a partition of one's choice; it arrives a minute later."""
    value = upload("LG-0", [pulses(meter_input, T0 + minute * MINUTE, minute)])
    topic, number = partition
    async with platform.producer() as producer:
        arrival = T0 + (minute + 1) * MINUTE
        await acknowledged([await producer.enqueue(topic, value, key=b"LG-0", partition=number, created_at=arrival)])


async def tick(platform: Platform, partitions: frozenset[Partition], at: datetime) -> None:
    """Move the arrival clock of some partitions on."""
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(topic, None, partition=number, created_at=at, is_tick=True)
                for topic, number in sorted(partitions)
            ]
        )


async def closed_until(platform: Platform) -> datetime | None:
    rows = await platform.fetch("SELECT closed_until FROM window_closed WHERE resolution_minutes = 1")
    return rows[0]["closed_until"] if rows else None


async def test_an_added_partition_is_read_from_its_beginning_and_holds_windows_open(platform: Platform) -> None:
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    platform.start("services.ingest")
    platform.start("services.windowing", environment={"METERPOST_LOOK_EVERY_SECONDS": "0.1"})
    logger, bridge = platform.topic(READINGS_LOGGER), platform.topic(READINGS_BRIDGE)
    first = await platform.reading_partitions()
    assert first == {(topic, number) for topic in (logger, bridge) for number in (0, 1)}
    await append(platform, (logger, 0), 1, minute=0)
    await tick(platform, first, T0 + 10 * MINUTE)

    async def has_closed(until: datetime) -> bool:
        return await closed_until(platform) == until

    await eventually_async(lambda: has_closed(T0 + 4 * MINUTE), 30, because="the first windows are closed")

    async with platform.admin() as admin:
        await admin.add_partitions(logger, 3)
        await admin.add_partitions(bridge, 3)
    added = (logger, 2)
    await append(platform, added, 2, minute=8)
    await tick(platform, first, T0 + 60 * MINUTE)

    async def old_partitions_are_far_ahead() -> bool:
        watermarks = await stored_watermarks(platform)
        return all(watermarks.get(partition) == T0 + 60 * MINUTE for partition in first)

    await eventually_async(old_partitions_are_far_ahead, 20, because="the old partitions went on")
    await platform.ingested()
    assert platform_watermark(await stored_watermarks(platform), await platform.reading_partitions()) is None
    assert await closed_until(platform) == T0 + 4 * MINUTE

    await tick(platform, await platform.reading_partitions() - first, T0 + 60 * MINUTE)
    await eventually_async(lambda: has_closed(T0 + 54 * MINUTE), 30, because="all partitions have been heard")
    query = "SELECT meter_id, window_start FROM measurement WHERE resolution_minutes = 1 ORDER BY meter_id"
    assert [tuple(row.values()) for row in await platform.fetch(query)] == [(1, T0), (2, T0 + 8 * MINUTE)]
    truth = await assert_exact(platform)
    assert len(truth.progress) == 6
    assert truth.progress[added].stored == 1


async def stored_watermarks(platform: Platform) -> dict[Partition, datetime | None]:
    rows = await platform.fetch("SELECT topic, partition, watermark FROM ingest_progress")
    return {(row["topic"], row["partition"]): row["watermark"] for row in rows}
