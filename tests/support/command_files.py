"""What the tests of the command have in common: files of meters, topics of their own, what was published."""

import asyncio
import uuid
from pathlib import Path

import msgspec

from services.core.messages import ReadingUpload
from services.local.kafka_server import KafkaServer
from services.platform.kafka import GroupConsumer, Record
from services.platform.kafka_access import KafkaAccess
from services.platform.topics import READING_TOPICS
from tests.support.command import Meterpost
from tests.support.polling import eventually_async

DATA = Path(__file__).parents[1] / "data"
NEM12 = DATA / "nem12_198_meters_5min_one_day.zip"
HOUSEHOLD = DATA / "uk_electricity_hourly.csv.gz"
URL = "https://localhost:8443/in"
JOB = ("jobs", "create", "--name", "J", "--all-sites", "--url", URL)
METERS = "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input\n"
MIXED_METERS = (
    METERS
    + "UK house,Electricity,kWh,0.001,UK,BR-UK,bridge,\nHall,Electricity,kWh,0.5,Plant,LG-1,logger,1\n"
    + "Tap,Water,m3,0.01,Plant,LG-1,logger,2\n"
)


def with_kafka(folder: Path, database_url: str, kafka_server: KafkaServer) -> Meterpost:
    return Meterpost(
        folder,
        {
            "METERPOST_DATABASE_URL": database_url,
            "METERPOST_KAFKA_BOOTSTRAP_SERVERS": kafka_server.bootstrap_servers,
            "METERPOST_TOPIC_PREFIX": f"{uuid.uuid4().hex[:8]}.",
        },
    )


def write(meterpost: Meterpost, name: str, text: str) -> Path:
    file = meterpost.folder / name
    file.write_text(text, encoding="utf-8")
    return file


async def records_of(meterpost: Meterpost) -> dict[tuple[str, int], list[Record]]:
    """Return all records of the reading topics, by partition without the prefix."""
    prefix = meterpost.environment["METERPOST_TOPIC_PREFIX"]
    topics = [prefix + topic for topic in READING_TOPICS]
    servers = meterpost.environment["METERPOST_KAFKA_BOOTSTRAP_SERVERS"]
    consumer = GroupConsumer(KafkaAccess(servers), group=f"{prefix}look", topics=topics, client="test")
    await consumer.start()
    try:
        await eventually_async(lambda: len(consumer.assigned) == 16)
        ends = await consumer.end_offsets(consumer.assigned)
        found: dict[tuple[str, int], list[Record]] = {}
        async with asyncio.timeout(30):
            while any(end > len(found.get(partition, [])) for partition, end in ends.items()):
                for batch in await consumer.poll(timeout_ms=200):
                    found.setdefault((batch.topic, batch.partition), []).extend(batch.records)
    finally:
        await consumer.stop()
    return {(topic.removeprefix(prefix), partition): records for (topic, partition), records in found.items()}


def uploads_in(records: dict[tuple[str, int], list[Record]]) -> list[tuple[str, Record, ReadingUpload]]:
    return [
        (topic, record, msgspec.json.decode(record.value, type=ReadingUpload))
        for (topic, _partition), found in records.items()
        for record in found
        if record.value is not None
    ]


def write_meters(folder: Path) -> Path:
    file = folder / "meters.csv"
    file.write_text(MIXED_METERS)
    return file
