"""Ingest killed at each of its crash points, again and again, among rebalances: the log decides what is stored."""

import random
import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from services.local.processes import ChildProcess
from services.platform.kafka import acknowledged
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.support.exactness import assert_exact
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import metered, pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
CRASH_POINTS = ("ingest.before_copy", "ingest.before_commit", "ingest.after_commit", "ingest.after_hint")
LOGGERS = 6
ROUNDS = 2
MINUTES_AT_A_TIME = 3
QUICK = {"METERPOST_BATCH_READINGS": "40", "METERPOST_SESSION_SECONDS": "2"}

Sent = tuple[str, str, bytes, datetime]


def uploads(minutes: Iterable[int], chance: random.Random) -> list[Sent]:
    """Return uploads with corrections by either way, repeats, late ones and some that are refused."""
    made: list[Sent] = []
    for minute in minutes:
        measured_at = T0 + minute * MINUTE
        arrival = measured_at + MINUTE + timedelta(seconds=chance.randrange(30))
        for logger in range(LOGGERS):
            readings = [pulses(number, measured_at, minute + number) for number in range(1, 6)]
            if chance.random() < 0.2:
                earlier = measured_at - chance.randrange(1, 30) * MINUTE
                readings += [pulses(chance.randrange(1, 6), earlier, 7, revision=chance.randrange(3))]
            if chance.random() < 0.05:
                readings += [pulses(9, measured_at, 1), pulses(1, measured_at, -1)]
            device = f"LG-{logger}"
            made.append((READINGS_LOGGER, device, upload(device, readings), arrival))
        earlier = measured_at - chance.randrange(30) * MINUTE
        corrections = [
            metered(meter, earlier, 5, revision=chance.randrange(3)) for meter in chance.sample(range(1, 31), 8)
        ]
        device = f"BR-{chance.randrange(4)}"
        made.append((READINGS_BRIDGE, device, upload(device, corrections), arrival))
    return made


async def publish(platform: Platform, sent: list[Sent]) -> None:
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(platform.topic(topic), value, key=key.encode(), created_at=arrival)
                for topic, key, value, arrival in sent
            ]
        )


async def test_killed_at_each_crash_point_again_and_again_the_equations_hold(platform: Platform) -> None:
    """Beside a member that dies there is one that lives on and is replaced now and then: crashes among rebalances."""
    await platform.declare_topics(partitions=3)
    await seed_catalog(platform.database_url, meters=LOGGERS * 5)
    await platform.fetch("INSERT INTO device SELECT 'BR-' || number, 1, 'bridge', 1 FROM generate_series(1, 3) number")
    await platform.fetch(
        "INSERT INTO bridge_attachment SELECT 'BR-' || number, meter_id, '-infinity', 1, true "
        "FROM meter, generate_series(1, 3) number"
    )
    chance = random.Random(4)
    minute = 0
    companion = platform.start("services.ingest", environment=QUICK)
    for round_ in range(1, ROUNDS + 1):
        for point in CRASH_POINTS:
            doomed = platform.start("services.ingest", environment={**QUICK, "METERPOST_CRASH_AT": f"{point}:{round_}"})

            async def feed_until_dead(doomed: ChildProcess = doomed) -> bool:
                nonlocal minute
                await publish(platform, uploads(range(minute, minute + MINUTES_AT_A_TIME), chance))
                minute += MINUTES_AT_A_TIME
                return not doomed.is_running

            await eventually_async(feed_until_dead, 30, because=f"a process died at {point}")
            assert doomed.exit_code == -signal.SIGKILL
        former, companion = companion, platform.start("services.ingest", environment=QUICK)
        assert former.is_running
        former.stop(6)
    await platform.ingested(60)
    assert companion.is_running
    seconds = minute * 60
    cut_offs = [T0 + timedelta(seconds=chance.randrange(seconds)) for _ in range(6)]
    truth = await assert_exact(platform, [T0, *cut_offs, T0 + timedelta(seconds=2 * seconds)])
    assert len(truth.versions) > 2000
    assert truth.refusals
