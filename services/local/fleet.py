"""A simulated fleet: `python -m services.local.fleet` first replays the past, then goes on live.

It does what devices in the field do: each uploads its readings shortly after the interval's end, sometimes corrects
one, rarely comes too late, and one is mis-wired. Every reading is a function of its meter and minute, so whatever is
sent a second time after a crash is the same reading. On topics with CreateTime it sends the ticks, too.
"""

import asyncio
import heapq
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import structlog
from pydantic import Field

from services.cli.publishing import ReadingPublisher, Upload
from services.core.messages import WireReading
from services.core.times import EPOCH, floor_to, parse_instant
from services.local.demo_catalog import DemoMeter, demo_meters
from services.platform.clock import Clock, SystemClock
from services.platform.command_line import service_parser
from services.platform.errors import Unavailable
from services.platform.health import Health
from services.platform.kafka import Producer
from services.platform.kafka_admin import Admin
from services.platform.lifecycle import run
from services.platform.postgres import Patience, connect_pool, wait_or_stop
from services.platform.settings import ServiceSettings
from services.platform.topics import READING_TOPICS, READINGS_BRIDGE, READINGS_LOGGER

MINUTE = timedelta(minutes=1)
LONGEST_UPLOAD_DELAY_S = 40
LATE_BY = timedelta(minutes=9)
LONGEST_CATCH_UP = timedelta(hours=24)
MIS_WIRED_INPUT = 99
log = structlog.get_logger()


class FleetSettings(ServiceSettings):
    """Settings of the simulated fleet."""

    fleet_state_file: Path = Field(Path("fleet.json"), description="Remembers how far the fleet has come.")
    replay_hours: int = Field(2, ge=0, le=48, description="How much of the past is replayed at the first start.")


class _Device(NamedTuple):
    device_id: str
    topic: str
    meters: list[DemoMeter]


def pulses_of(meter_id: int, minute: datetime) -> int:
    """Return the pulses of one minute: a daily profile with noise, the same on every call."""
    number = (minute - EPOCH) // MINUTE
    profile = 6 + (8 - abs(minute.hour - 14)) // 2 if 6 <= minute.hour < 22 else 2
    noise = crc32(f"{meter_id}/{number}".encode())
    return profile * (meter_id % 7 + 1) + noise % 11


def uploads_of_minute(devices: Sequence[_Device], minute: datetime) -> Iterator[Upload]:
    """Return what the devices send of the interval that starts at `minute`, in no order."""
    end = minute + MINUTE
    number = (minute - EPOCH) // MINUTE
    for device in devices:
        chance = crc32(f"{device.device_id}/{number}".encode()) % 10_000
        arrives_at = end + timedelta(milliseconds=1000 + chance * (LONGEST_UPLOAD_DELAY_S - 1) // 10)
        readings = [_reading(meter, minute) for meter in device.meters]
        yield Upload(arrives_at + (LATE_BY if chance < 5 else timedelta()), device.topic, device.device_id, readings)
        if 5 <= chance < 30:
            corrected = _reading(device.meters[0], minute, extra=3, revision=1)
            yield Upload(arrives_at + 2 * MINUTE, device.topic, device.device_id, [corrected])
    if number % 10 == 0:
        first = next(device for device in devices if device.topic == READINGS_LOGGER)
        stray = WireReading(measurement_time=minute, interval_minutes=1, input=MIS_WIRED_INPUT, pulses=1)
        yield Upload(end + MINUTE / 2, first.topic, first.device_id, [stray])


def _reading(meter: DemoMeter, minute: datetime, *, extra: int = 0, revision: int = 0) -> WireReading:
    pulses = pulses_of(meter.meter_id, minute) + extra
    if meter.input is None:
        return WireReading(
            measurement_time=minute, interval_minutes=1, meter_id=meter.meter_id, pulses=pulses, revision=revision
        )
    return WireReading(measurement_time=minute, interval_minutes=1, input=meter.input, pulses=pulses, revision=revision)


class Fleet:
    """Sends uploads in the order of their arrival, as fast as it can up to the present, then as time goes by."""

    def __init__(self, publisher: ReadingPublisher, devices: Sequence[_Device], state_file: Path, clock: Clock) -> None:
        self._publisher = publisher
        self._devices = devices
        self._state_file = state_file
        self._clock = clock

    async def run(self, replay: timedelta, health: Health, stopping: asyncio.Event) -> None:
        """Send until told to stop. Raises Unavailable where Kafka is away; the next start goes on."""
        position = self._position(replay)
        next_minute = floor_to(position - LATE_BY - 3 * MINUTE, MINUTE)
        waiting: list[tuple[datetime, int, Upload]] = []
        sequence = 0
        while not stopping.is_set():
            health.progress()
            now = self._clock.now()
            # Everything that can arrive by then is in the heap before anything of it is sent.
            horizon = min(now, position + MINUTE)
            while next_minute + MINUTE <= horizon:
                for upload in uploads_of_minute(self._devices, next_minute):
                    if upload.arrives_at > position:
                        sequence += 1
                        heapq.heappush(waiting, (upload.arrives_at, sequence, upload))
                next_minute += MINUTE
            while waiting and waiting[0][0] <= horizon:
                await self._publisher.publish(heapq.heappop(waiting)[2])
            await self._publisher.tick(horizon)
            await self._publisher.settle()
            position = horizon
            self._remember(position)
            if horizon == now:
                await wait_or_stop(stopping, 1.0)

    def _position(self, replay: timedelta) -> datetime:
        """Return the arrival up to which everything has been sent; the first start begins with the replay."""
        now = self._clock.now()
        try:
            noted = parse_instant(json.loads(self._state_file.read_text(encoding="ascii"))["sent_until"])
        except (OSError, ValueError, KeyError, TypeError):
            return now - replay
        return max(noted, now - LONGEST_CATCH_UP)

    def _remember(self, position: datetime) -> None:
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps({"sent_until": position.isoformat()}), encoding="ascii")
        partial.replace(self._state_file)


async def main(settings: FleetSettings, health: Health, stopping: asyncio.Event) -> None:
    """Run the fleet until told to stop."""
    patience = Patience(health, stopping)
    url = settings.database_url.get_secret_value()
    kafka = settings.kafka_access()
    producer, admin = Producer(kafka, client=settings.instance), Admin(kafka)
    topics = [settings.topic(name) for name in READING_TOPICS]
    try:
        pool = await patience.postgres(lambda: connect_pool(url, max_size=1))
        devices = _devices(await patience.postgres(lambda: demo_meters(pool)))
        await pool.close()
        await patience.kafka(producer.start)
        await patience.kafka(admin.start)
        while not stopping.is_set():
            partitions = await patience.kafka(lambda: admin.partitions(topics))
            types = await patience.kafka(lambda: admin.time_types(topics))
            # Where the broker sets the arrival, the past can only arrive late: such a fleet is live from the start.
            hours = settings.replay_hours if set(types.values()) == {"CreateTime"} else 0
            publisher = ReadingPublisher(producer, partitions=partitions, topic_prefix=settings.topic_prefix)
            fleet = Fleet(publisher, devices, settings.fleet_state_file, SystemClock())
            try:
                health.started()
                await fleet.run(timedelta(hours=hours), health, stopping)
            except Unavailable as error:
                log.warning("kafka_away", error=str(error))
                await wait_or_stop(stopping, 1.0)
    except Unavailable:
        log.info("stopped_while_waiting")
    finally:
        await producer.stop()
        await admin.stop()


def _devices(meters: Sequence[DemoMeter]) -> list[_Device]:
    grouped: dict[tuple[str, str], list[DemoMeter]] = defaultdict(list)
    for meter in meters:
        grouped[meter.device_id, READINGS_BRIDGE if meter.input is None else READINGS_LOGGER].append(meter)
    return [_Device(device_id, topic, its) for (device_id, topic), its in sorted(grouped.items())]


if __name__ == "__main__":
    told = service_parser("Simulates the demo's devices: replays the past first, then goes on live.", FleetSettings)
    sys.exit(run("fleet", FleetSettings, main, is_check=told.parse_args().check_config))
