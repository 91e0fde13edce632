"""The load of the ingest bench: a catalog of meters, a topic full of their readings, and the limit to compare with."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import numpy as np

from services.core.columns import Columns
from services.core.messages import ReadingUpload, WireReading
from services.core.times import to_epoch_microseconds
from services.ingest.binary_copy import COLUMN_NAMES, encode_pieces
from services.ingest.day_partitions import day_partitions, partition_name
from services.platform.kafka import Producer, acknowledged
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_admin import Admin
from services.platform.partitions import create_partitions
from services.platform.postgres import connect_pool
from services.platform.topics import READINGS_LOGGER, for_replay, load_topics

# Late enough in its day that what is stored before lies in the same partition.
T0 = datetime(2026, 11, 20, 20, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
COPY_ROWS = 50_000


@dataclass(frozen=True)
class Load:
    """How much of what is put on the topic."""

    meters: int
    minutes: int
    per_record: int
    correction_share: float
    partitions: int
    processes: int = 1
    stored_before: int = 0
    """Readings of the same meters that the table holds already."""

    @property
    def readings(self) -> int:
        """Readings without the corrections."""
        return self.meters * self.minutes


def records(load: Load) -> Iterator[tuple[str, ReadingUpload, datetime, int]]:
    """Yield (device, upload, arrival, corrections in it), minute by minute."""
    chance = random.Random(1)  # noqa: S311 - the same load every time
    for number in range(load.minutes):
        measured_at = T0 + number * MINUTE
        for first in range(0, load.meters, load.per_record):
            device_id = f"LG-{first // load.per_record:06}"
            readings = [
                WireReading(
                    measurement_time=measured_at, interval_minutes=1, input=input_, pulses=(first + input_) % 97
                )
                for input_ in range(1, min(load.per_record, load.meters - first) + 1)
            ]
            is_corrected = bool(number) and chance.random() < load.correction_share * load.per_record
            if is_corrected:
                before = measured_at - MINUTE
                readings.append(WireReading(measurement_time=before, interval_minutes=1, input=1, pulses=5, revision=1))
            yield device_id, ReadingUpload(device_id, measured_at, readings), measured_at + MINUTE, int(is_corrected)


async def register(url: str, load: Load) -> None:
    """Put the meters and their loggers into the catalog."""
    connection = await asyncpg.connect(url)
    device = f"'LG-' || lpad(((meter_id - 1) / {load.per_record})::text, 6, '0')"
    await connection.execute(
        f"""
        UPDATE catalog_revision SET revision = 1;
        INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Bench', 1);
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision)
            SELECT number, 1, 'Electricity', 'electricity', 1 FROM generate_series(1, {load.meters}) AS number;
        INSERT INTO device SELECT DISTINCT {device}, 1, 'logger', 1 FROM meter;
        INSERT INTO input_attachment SELECT {device}, (meter_id - 1) % {load.per_record} + 1, '-infinity', 1, meter_id
            FROM meter;
        """  # noqa: S608 - numbers of ours
    )
    await connection.close()


async def publish(kafka: KafkaAccess, load: Load) -> tuple[int, int]:
    """Load the topic; return how many readings and how many corrections it holds."""
    admin = Admin(kafka)
    await admin.start()
    await admin.declare([for_replay(replace(topic, partitions=load.partitions)) for topic in load_topics()])
    await admin.stop()
    producer = Producer(kafka, client="bench")
    await producer.start()
    encoder = msgspec.json.Encoder()
    readings = corrections = 0
    waiting: list[asyncio.Future[Any]] = []
    for device_id, upload, arrival, corrected in records(load):
        key = device_id.encode()
        waiting.append(await producer.enqueue(READINGS_LOGGER, encoder.encode(upload), key=key, created_at=arrival))
        readings += len(upload.readings)
        corrections += corrected
        if len(waiting) >= 5_000:
            await acknowledged(waiting)
            waiting.clear()
    await acknowledged(waiting)
    await producer.stop()
    return readings, corrections


async def copy_limit(url: str, load: Load) -> float:
    """Return rows/s of direct binary COPY of the same rows, minute by minute, sorted by meter, into `reading`."""
    minutes = [T0 + number * MINUTE for number in range(load.minutes)]
    seconds = await _copy(url, [(minute, _encoded(load, minute)) for minute in minutes])
    await _execute(url, "TRUNCATE reading")
    return load.readings / seconds


async def fill(url: str, load: Load) -> None:
    """Store `stored_before` readings, those of the minutes before the load."""
    for number in range(-(-load.stored_before // load.meters), 0, -1):
        minute = T0 - number * MINUTE
        await _copy(url, [(minute, _encoded(load, minute))])
    await _execute(url, "ANALYZE reading")


def _encoded(load: Load, measured_at: datetime) -> list[bytes]:
    meter_id = np.arange(1, load.meters + 1, dtype=np.int64)
    none, one = np.zeros_like(meter_id), np.ones_like(meter_id)
    measured = none + to_epoch_microseconds(measured_at)
    rows = Columns(measured, measured + 60_000_000, meter_id % 97, meter_id, meter_id, none, none, none, one, one, none)
    shares = (rows.take(slice(first, first + COPY_ROWS)) for first in range(0, load.meters, COPY_ROWS))
    return [b"".join(encode_pieces(share)) for share in shares]


async def _copy(url: str, encoded: list[tuple[datetime, list[bytes]]]) -> float:
    """COPY each of the bodies in a transaction of its own; return the seconds that took."""
    pool = await connect_pool(url, max_size=1)
    try:
        for day in {minute.date() for minute, _bodies in encoded}:
            await create_partitions(pool, day_partitions(day))
        async with pool.acquire() as connection:
            started = time.perf_counter()
            for minute, bodies in encoded:
                for body in bodies:
                    async with connection.transaction():
                        table = partition_name("reading", minute.date())
                        await connection.copy_to_table(table, source=_once(body), columns=COLUMN_NAMES, format="binary")
            return time.perf_counter() - started
    finally:
        await pool.close()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
