"""What operators see of ingest and decide about it, on the real broker and database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.platform.kafka import acknowledged
from services.platform.topics import READINGS_LOGGER
from tests.support.command import Meterpost
from tests.support.platform import Platform
from tests.support.seed import pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def meterpost(platform: Platform) -> Meterpost:
    names = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "TOPIC_PREFIX")
    variables = {f"METERPOST_{name}": platform.environment[f"METERPOST_{name}"] for name in names}
    return Meterpost(platform.folder, variables)


async def publish(platform: Platform, values: list[tuple[bytes, datetime]], *, partition: int = 0) -> None:
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(
                    platform.topic(READINGS_LOGGER), value, key=b"LG-0", partition=partition, created_at=arrival
                )
                for value, arrival in values
            ]
        )


def minute_upload(number: int, device: str = "LG-0") -> tuple[bytes, datetime]:
    return upload(device, [pulses(1, T0 + number * MINUTE, number)]), T0 + (number + 1) * MINUTE


def of_partition(status: dict[str, Any], name: str, partition: int = 0) -> dict[str, Any]:
    [found] = [one for one in status["partitions"] if one["topic"].endswith(name) and one["partition"] == partition]
    return dict(found)


async def test_status_tells_position_lag_and_watermark_of_every_partition(
    platform: Platform, meterpost: Meterpost
) -> None:
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    before = meterpost.json("ingest", "status")
    assert {one["state"] for one in before["partitions"]} == {"new"}
    assert "not claimed yet" in meterpost.ok("ingest", "status")

    await publish(platform, [minute_upload(0), minute_upload(1, "LG-404")])
    service = platform.start("services.ingest")
    await platform.ingested()
    service.stop(6)
    await publish(platform, [minute_upload(number) for number in range(2, 5)])
    status = meterpost.json("ingest", "status")
    assert len(status["partitions"]) == 4
    read = of_partition(status, READINGS_LOGGER)
    expected = {"state": "read", "position": 2, "end_offset": 5, "lag_records": 3, "lag_seconds": 180.0, "epoch": 1}
    assert expected.items() <= read.items()
    assert (read["stored_count"], read["refused_count"]) == (1, 1)
    assert (read["owner"], read["watermark"]) == (service.name, "2026-11-20T10:02:00Z")
    assert of_partition(status, READINGS_LOGGER, 1)["lag_seconds"] == 0.0
    assert status["totals"] | {"lag_records": 3, "stored_count": 1, "refused_count": 1} == status["totals"]
    assert status["totals"]["watermark"] is None
    shown = meterpost.ok("ingest", "status")
    assert "0:03:00" in shown
    assert "4 partitions" in shown


async def test_status_says_what_is_away(platform: Platform, meterpost: Meterpost) -> None:
    nobody = "127.0.0.1:1"
    assert "Kafka does not answer" in meterpost.refused("ingest", "status", "--kafka", nobody, code=1)
    away = f"postgresql://nobody@{nobody}/nothing"
    assert "PostgreSQL does not answer" in meterpost.refused("ingest", "status", "--database", away, code=1)
    assert "UnknownTopic" in meterpost.refused("ingest", "status", code=1)
