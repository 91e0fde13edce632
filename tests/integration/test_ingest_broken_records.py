"""Broken bytes through the real topic, service and database: nothing stops, and every reading is accounted for."""

from datetime import UTC, datetime

from services.platform.kafka import acknowledged
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.support.exactness import assert_exact
from tests.support.mutation import fuzzed_records
from tests.support.platform import Platform
from tests.support.seed import seed_catalog

ARRIVAL = datetime(2026, 11, 20, 10, 1, 2, tzinfo=UTC)
DEVICES = ("LG-0", "LG-1", "LG-404")
# PostgreSQL's text holds no zero byte, and a record may have no value at all.
NAMED = (
    rb'{"device_id":"LG\u0000-0","sent_at":"2026-11-20T10:01:00Z","readings":[{},{"\u0000":"\u0000"}]}',
    rb'{"device_id":"\u0000","sent_at":"2026-11-20T10:01:00Z","readings":[1]}',
    rb'{"device_id":"LG-0","sent_at":"\u0000","readings":[]}',
    rb'{"device_id":"LG-0\ud800","sent_at":"2026-11-20T10:01:00Z","readings":[]}',
    b"",
)


async def test_broken_records_end_to_end(platform: Platform) -> None:
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    service = platform.start("services.ingest")
    async with platform.producer() as producer:
        futures = [
            await producer.enqueue(platform.topic(topic), value, key=str(number).encode(), created_at=ARRIVAL)
            for topic, values in (
                (READINGS_LOGGER, [*NAMED, None, *fuzzed_records(11, 1200, DEVICES)]),
                (READINGS_BRIDGE, [*fuzzed_records(12, 300, ("BR-0", *DEVICES))]),
            )
            for number, value in enumerate(values)
        ]
        await acknowledged(futures)
    await platform.ingested(60)
    assert service.is_running
    truth = await assert_exact(platform, [ARRIVAL])
    assert len(truth.versions) > 500
    assert len({reason for *_place, reason in truth.refusals}) > 6
    devices = await platform.fetch("SELECT DISTINCT device_id FROM rejected_reading WHERE device_id LIKE '%\u2400%'")
    assert {"LG\u2400-0", "\u2400"} <= {row["device_id"] for row in devices}
