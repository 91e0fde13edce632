"""The live part of the delivery bench: the whole platform at work, from readings on Kafka to files at the receivers.

The meters of twelve organizations send one-minute readings through Kafka; ingest, windowing and the three delivery
processes run as they are; a job of each organization exports one-minute data every five minutes, four jobs by each
transport. What is timed is from the instant at which a run's last window has its cut-off to the last of its parts at
the receiver. So that slots follow each other within seconds, the clock that the records' arrivals are told by runs
faster than the wall clock (`--live-speed`), which makes the load on everything heavier by as much; all durations are
the wall clock's. Partitions are ticked once a second, as ingest does on idle ones.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import msgspec
from rich.console import Console

from bench.delivery_load import INPUTS, Target, Windows, add_catalog, add_jobs, targets, vault
from bench.servers import Servers, servers
from services.core.messages import ReadingUpload, WireReading
from services.core.times import floor_to
from services.platform.clock import SystemClock
from services.platform.kafka import Producer, acknowledged
from services.platform.kafka_admin import Admin
from services.platform.topics import READING_TOPICS, READINGS_LOGGER, for_replay, load_topics

MINUTE = timedelta(minutes=1)
SLOT = timedelta(minutes=5)
GRACE = timedelta(minutes=1)
ORGANIZATIONS = 12
STEP_SECONDS = 0.02
TICK_SECONDS = 1.0
FINISH_SECONDS = 60.0
# The first slot opens everything: partitions of the day, connections, names.
WARM_UP_SLOTS = 1


@dataclass(frozen=True)
class LiveLoad:
    """How many meters, for how many slots, and how many times as fast as the wall clock."""

    meters: int
    slots: int
    speed: float


@dataclass(frozen=True)
class FastClock:
    """The clock of the records' arrivals."""

    start: datetime
    started: float
    """Seconds since the epoch, by the wall clock."""
    speed: float

    def now(self) -> datetime:
        """Return what time it is."""
        elapsed = SystemClock().now().timestamp() - self.started
        return self.start + timedelta(seconds=elapsed * self.speed)

    def wall(self, instant: datetime) -> float:
        """Return when it is `instant`, in seconds since the epoch by the wall clock."""
        return self.started + (instant - self.start).total_seconds() / self.speed


def uploads(meters: int, start: datetime) -> Iterator[tuple[datetime, str, bytes]]:
    """Yield (when, device, upload) without end: each logger sends a minute's readings some time within the next one."""
    encode = msgspec.json.Encoder().encode
    each = meters // ORGANIZATIONS
    devices = [
        f"LG-{meter_id // INPUTS}"
        for organization_id in range(1, ORGANIZATIONS + 1)
        for meter_id in islice(count(Windows(organization_id, each, 0, 1).first_meter_id, INPUTS), each // INPUTS)
    ]
    measured_at = start
    while True:
        for logger, device_id in enumerate(devices):
            readings = [
                WireReading(
                    measurement_time=measured_at, interval_minutes=1, input=number, pulses=(logger * 31 + number) % 977
                )
                for number in range(1, INPUTS + 1)
            ]
            at = measured_at + MINUTE + MINUTE * logger / len(devices)
            yield at, device_id, encode(ReadingUpload(device_id, at, readings))
        measured_at += MINUTE


async def publish(producer: Producer, partitions: list[tuple[str, int]], load: LiveLoad, clock: FastClock) -> None:
    """Publish readings and ticks until the cut-off of the last slot has passed for good."""
    last = clock.start + SLOT * (load.slots + WARM_UP_SLOTS) + GRACE + timedelta(seconds=5 * load.speed)
    waiting = uploads(load.meters, clock.start)
    at, device_id, value = next(waiting)
    sent: deque[asyncio.Future[Any]] = deque()
    next_tick = 0.0
    while (now := clock.now()) < last:
        while at <= now:
            sent.append(await producer.enqueue(READINGS_LOGGER, value, key=device_id.encode(), created_at=at))
            at, device_id, value = next(waiting)
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + TICK_SECONDS
            for topic, partition in partitions:
                sent.append(
                    await producer.enqueue(topic, None, partition=partition, is_tick=True, created_at=clock.now())
                )
        while sent and sent[0].done():
            sent.popleft().result()
        await asyncio.sleep(STEP_SECONDS)
    await acknowledged(sent)


async def register(url: str, load: LiveLoad) -> list[int]:
    """Put the organizations, their meters and loggers into the catalog; return the organizations' ids."""
    each = load.meters // ORGANIZATIONS // INPUTS * INPUTS
    connection = await asyncpg.connect(url)
    for organization_id in range(1, ORGANIZATIONS + 1):
        await add_catalog(connection, Windows(organization_id, each, 0, 1))
    await connection.close()
    return list(range(1, ORGANIZATIONS + 1))


async def measure_live(load: LiveLoad, console: Console) -> dict[str, float]:
    """Run the platform; return how long after the cut-off runs were received."""
    async with servers() as on:
        admin = Admin(on.kafka)
        await admin.start()
        await admin.declare(map(for_replay, load_topics()))
        partitions = sorted(await admin.partitions(READING_TOPICS))
        await admin.stop()
        load = LiveLoad(load.meters // ORGANIZATIONS // INPUTS * INPUTS * ORGANIZATIONS, load.slots, load.speed)
        organizations = await register(on.database_url, load)
        # Far enough in the past never to overtake the wall clock.
        length = (SLOT * (load.slots + WARM_UP_SLOTS + 4)).total_seconds()
        start = floor_to(SystemClock().now() - timedelta(seconds=length), SLOT)
        receivers = targets(on.folder)
        with ExitStack() as cleanup:
            jobs = 0
            for number, target in enumerate(receivers.values()):
                cleanup.enter_context(target.running())
                jobs += len(await add_jobs(on, target, organizations[number :: len(receivers)], 5, 1, start))
            _start_services(on, receivers)
            producer = Producer(on.kafka, client="bench")
            await producer.start()
            clock = FastClock(start, SystemClock().now().timestamp(), load.speed)
            await publish(producer, partitions, load, clock)
            await producer.stop()
            slots = [start + SLOT * (number + WARM_UP_SLOTS) for number in range(load.slots)]
            await _until_delivered(on, slots, jobs)
            latencies = received_after([target.folder for target in receivers.values()], slots, clock)
        if len(latencies) != jobs * len(slots):
            raise SystemExit(f"{jobs * len(slots)} runs were delivered, {len(latencies)} arrived")
    latencies.sort()
    return {
        "cut_off_to_received_p50_s": round(median(latencies), 2),
        "cut_off_to_received_p99_s": round(latencies[math.ceil(len(latencies) * 0.99) - 1], 2),
        "live_runs": len(latencies),
        "live_readings_per_s": round(load.meters / 60 * load.speed),
    }


def received_after(folders: list[Path], slots: list[datetime], clock: FastClock) -> list[float]:
    """Return of each run how many seconds after its cut-off the last of its files had its name."""
    placed: dict[str, float] = defaultdict(float)
    cut_offs = {f"{slot:%Y%m%dT%H%M%SZ}": clock.wall(slot + SLOT + GRACE) for slot in slots}
    for folder in folders:
        for file in folder.rglob("[!.]*_meters_measurements_*"):
            run, _part = file.stem.rsplit("_", 1)
            # Renaming is the last that happens to a file.
            placed[run] = max(placed[run], file.stat().st_ctime)
    found = []
    for run, at in placed.items():
        cut_off = cut_offs.get(run.rsplit("_", 2)[1])
        if cut_off is not None:
            found.append(at - cut_off)
    return found


def _start_services(on: Servers, receivers: dict[str, Target]) -> None:
    _vault, keys_file = vault(on.folder)
    environment = {
        "METERPOST_ALLOWED_DESTINATIONS": "127.0.0.0/8, ::1",
        "METERPOST_SECRET_KEYS_FILE": str(keys_file),
        "METERPOST_GRACE_SECONDS": str(int(GRACE.total_seconds())),
        "METERPOST_HEALTH_PORT": "0",
    }
    for module in ("services.ingest", "services.windowing"):
        on.service(module, **environment)
    for transport in receivers:
        on.service("services.delivery", transport, **environment)


async def _until_delivered(on: Servers, slots: list[datetime], jobs: int) -> None:
    connection = await asyncpg.connect(on.database_url)
    ends = time.monotonic() + FINISH_SECONDS
    query = "SELECT count(*) FROM export_run WHERE state = 'delivered' AND slot_start = ANY ($1)"
    while (done := await connection.fetchval(query, slots)) < jobs * len(slots):
        ended = [service for service in on.services if not service.is_running]
        if ended:
            raise SystemExit(ended[0].log_tail())
        if time.monotonic() > ends:
            raise SystemExit(f"{done} of {jobs * len(slots)} runs were delivered in time")
        await asyncio.sleep(0.1)
    await connection.close()
