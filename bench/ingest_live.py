"""`python -m bench.ingest_live`: how long after its append a reading is stored, under steady live traffic.

Loggers publish at a steady pace to topics on which the broker sets the time, the real service stores. The bench asks
the database every 10 ms how far each partition is stored: a record counts as stored when that is first seen, so what
is measured is never too short. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Any

import asyncpg
import msgspec
from rich.console import Console

from bench.ingest_load import Load, register
from bench.servers import servers
from services.core.messages import ReadingUpload, WireReading
from services.core.times import floor_to, to_epoch_milliseconds
from services.platform.clock import SystemClock
from services.platform.kafka import Partition, Producer, acknowledged
from services.platform.kafka_admin import Admin
from services.platform.topics import READINGS_LOGGER, load_topics

MINUTE = timedelta(minutes=1)
STEP_SECONDS = 0.05
LOOK_SECONDS = 0.01
WARM_UP_SECONDS = 10
STORED = "SELECT topic, partition, next_offset FROM ingest_progress"


@dataclass
class Latencies:
    """Which records were appended when, and how long after they were seen stored."""

    appended: dict[Partition, deque[tuple[int, int]]] = field(default_factory=lambda: defaultdict(deque))
    milliseconds: list[int] = field(default_factory=list)

    def acknowledge(self, sent: "asyncio.Future[Any]") -> None:
        """Note where and when the broker appended a record."""
        made = sent.result()
        self.appended[made.topic, made.partition].append((made.offset, made.timestamp))

    def see(self, partition: Partition, next_offset: int, now_ms: int) -> None:
        """Note that everything before `next_offset` is stored."""
        waiting = self.appended[partition]
        while waiting and waiting[0][0] < next_offset:
            self.milliseconds.append(now_ms - waiting.popleft()[1])


def uploads(load: Load, start: datetime) -> Iterator[tuple[str, bytes]]:
    """Yield uploads without end: of every logger one minute, then of every logger the next."""
    encoder = msgspec.json.Encoder()
    measured_at = start
    while True:
        for logger in range(load.meters // load.per_record):
            device_id = f"LG-{logger:06}"
            readings = [
                WireReading(measurement_time=measured_at, interval_minutes=1, input=number, pulses=number)
                for number in range(1, load.per_record + 1)
            ]
            yield device_id, encoder.encode(ReadingUpload(device_id, measured_at, readings))
        measured_at += MINUTE


async def publish(
    producer: Producer, waiting: Iterator[tuple[str, bytes]], pace: float, seconds: float, found: Latencies
) -> None:
    """Publish `pace` uploads a second; raises when the broker cannot follow."""
    started, sent, latest = time.monotonic(), 0, deque[asyncio.Future[Any]]()
    while (elapsed := time.monotonic() - started) < seconds:
        while sent < elapsed * pace:
            device_id, value = next(waiting)
            future = await producer.enqueue(READINGS_LOGGER, value, key=device_id.encode())
            future.add_done_callback(found.acknowledge)
            latest.append(future)
            sent += 1
        await asyncio.sleep(STEP_SECONDS)
        while latest and latest[0].done():
            latest.popleft().result()
    await acknowledged(latest)


async def look(url: str, found: Latencies, published: asyncio.Event) -> None:
    """Follow what is stored until everything published is."""
    connection = await asyncpg.connect(url)
    while not (published.is_set() and not any(found.appended.values())):
        rows = await connection.fetch(STORED)
        now_ms = to_epoch_milliseconds(SystemClock().now())
        for topic, partition, next_offset in rows:
            found.see((topic, partition), next_offset, now_ms)
        await asyncio.sleep(LOOK_SECONDS)
    await connection.close()


async def measure(load: Load, readings_per_s: int, seconds: int) -> dict[str, float]:
    """Run the whole bench."""
    async with servers() as on:
        await register(on.database_url, load)
        admin = Admin(on.kafka)
        await admin.start()
        await admin.declare(load_topics())
        await admin.stop()
        on.service("services.ingest")
        producer = Producer(on.kafka, client="bench")
        await producer.start()
        warm_up, found, published = Latencies(), Latencies(), asyncio.Event()
        waiting = uploads(load, floor_to(SystemClock().now(), MINUTE) - timedelta(days=1))
        pace = readings_per_s / load.per_record
        await publish(producer, waiting, pace, WARM_UP_SECONDS, warm_up)
        looking = asyncio.create_task(look(on.database_url, found, published))
        await publish(producer, waiting, pace, seconds, found)
        published.set()
        await looking
        await producer.stop()
    cuts = quantiles(found.milliseconds, n=100)
    return {
        "readings_per_s": round(len(found.milliseconds) * load.per_record / seconds),
        "append_to_commit_p50_ms": round(cuts[49], 1),
        "append_to_commit_p99_ms": round(cuts[98], 1),
        "records": len(found.milliseconds),
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest_live", description=__doc__)
    parser.add_argument("--meters", type=int, default=50_000)
    parser.add_argument("--per-record", type=int, default=20)
    parser.add_argument("--readings-per-s", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    load = Load(meters=options.meters, minutes=1, per_record=options.per_record, correction_share=0, partitions=8)
    Console(stderr=True).print(f"publishing {options.readings_per_s:,} readings/s for {options.seconds} s")
    print(json.dumps(asyncio.run(measure(load, options.readings_per_s, options.seconds))))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
