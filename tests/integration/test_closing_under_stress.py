"""Workers that die in the middle of closing, and a backlog of a day: on the real broker and database."""

import asyncio
from collections import defaultdict, deque
from datetime import datetime
from typing import Any, cast

import msgspec
import pytest

from services.core.messages import WindowsDue, encode
from services.core.windows import RESOLUTIONS_MINUTES
from services.local.processes import ChildProcess
from services.platform.health import Health
from services.platform.kafka import Producer
from services.platform.postgres import Patience, Pool
from services.platform.topics import READING_TOPICS
from services.windowing import closer as closer_module
from services.windowing.announcements import BucketKey
from services.windowing.closer import Closer
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    assert_closed_as_expected,
    begin,
    seed_meters,
    store_progress,
    store_versions,
    version,
)
from tests.support.platform import Platform
from tests.support.polling import eventually, eventually_async

SERVICE = "services.windowing"
HOUR = 60 * MINUTE
QUICK = {"METERPOST_LOOK_EVERY_SECONDS": "0.2", "METERPOST_REPEAT_AFTER_SECONDS": "1"}
CRASH_POINTS = ("windowing.claimed", "windowing.bucket_written", "windowing.bucket_closed", "windowing.before_event")


async def hear(platform: Platform, watermark: datetime) -> None:
    for name in READING_TOPICS:
        for partition in (0, 1):
            topic = platform.topic(name)
            await store_progress(platform.database_url, watermark, first_arrival=T0, topic=topic, partition=partition)


async def closed(platform: Platform, until: datetime, timeout_s: float = 60) -> None:
    async def reached() -> bool:
        rows = await platform.fetch("SELECT DISTINCT closed_until FROM window_closed")
        return [row["closed_until"] for row in rows] == [until]

    await eventually_async(reached, timeout_s, because=f"all windows are closed until {until}")


async def assert_in_order(platform: Platform) -> None:
    """Each bucket's windows were closed one after the other, the oldest first, each once."""
    rows = await platform.fetch(
        "SELECT resolution_minutes, bucket, window_start, closed_at FROM window_closing ORDER BY 1, 2, 3"
    )
    by_bucket: dict[tuple[int, int], list[datetime]] = defaultdict(list)
    for row in rows:
        by_bucket[row["resolution_minutes"], row["bucket"]].append(row["closed_at"])
    assert len(by_bucket) == 4 * len(UTILITIES)
    assert all(times == sorted(times) for times in by_bucket.values())


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_workers_that_die_at_any_place_leave_nothing_half_done(platform: Platform, point: str) -> None:
    """Two come to their end there; two others find what they left."""
    versions = [version(meter, T0 + n * MINUTE, meter * 100 + n) for n in range(120) for meter in UTILITIES]
    await platform.declare_topics()
    await seed_meters(platform.database_url, UTILITIES)
    await store_versions(platform.database_url, versions)
    await hear(platform, T0 + 126 * MINUTE)
    small = {**QUICK, "METERPOST_STATEMENT_READINGS": "60"}
    crashing = {**small, "METERPOST_CRASH_AT": f"{point}:2"}
    first = [platform.start(SERVICE, environment=crashing) for _ in range(2)]
    # The second one dies once it is given the share of the first, or is ended here in the middle of its own.
    eventually(lambda: not all(one.is_running for one in first), 40, because="a worker dies there")
    for one in first:
        one.kill()
    for _ in range(2):
        platform.start(SERVICE, environment=small)
    await closed(platform, T0 + 120 * MINUTE)
    await assert_closed_as_expected(platform.database_url, versions)
    await assert_in_order(platform)


async def test_a_day_of_backlog_closes_oldest_first_in_flat_memory(platform: Platform) -> None:
    versions = [version(meter, T0 + n * MINUTE, meter + n) for n in range(24 * 60) for meter in UTILITIES]
    await platform.declare_topics()
    await seed_meters(platform.database_url, UTILITIES)
    await store_versions(platform.database_url, versions)
    await hear(platform, T0 + 24 * HOUR + 6 * MINUTE)
    workers = [platform.start(SERVICE, environment={**QUICK, "METERPOST_STATEMENT_READINGS": "100"}) for _ in range(2)]

    async def begun() -> bool:
        return bool(await platform.value("SELECT count(*) > 100 FROM window_closing"))

    await eventually_async(begun, 40, because="closing has begun")
    before = [resident_bytes(worker) for worker in workers]
    await closed(platform, T0 + 24 * HOUR, timeout_s=120)
    grown = [resident_bytes(worker) - earlier for worker, earlier in zip(workers, before, strict=True)]
    assert max(grown) < 24_000_000, grown
    await assert_closed_as_expected(platform.database_url, versions)
    await assert_in_order(platform)


def resident_bytes(process: ChildProcess) -> int:
    with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:  # noqa: PTH123 - no file of a disk
        return int(file.read().split()[1]) * 4096


class Topic:
    """Stands for windows.due with one partition: what is announced is served in its order, by one worker."""

    def __init__(self, settings: WindowingSettings) -> None:
        self._due = settings.topic("windows.due")
        self.waiting: deque[WindowsDue] = deque()

    async def send(self, topic: str, value: bytes, **_options: Any) -> None:
        if topic == self._due:
            self.waiting.append(msgspec.json.decode(value, type=WindowsDue))


async def test_a_backlog_of_minutes_does_not_hold_up_hours_nor_new_windows(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is served twice before everybody who waited was served once: with turns of one statement, counted."""
    monkeypatch.setattr(closer_module, "TURN_SECONDS", 0.0)
    versions = [version(meter, T0 + n * MINUTE, n) for n in range(25 * 60) for meter in (1, 2)]
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    options: dict[str, Any] = {"statement_readings": 10, "buckets": 2}
    settings = WindowingSettings(**options)
    store = await begin(pool, database_url, T0 + 24 * HOUR + 6 * MINUTE, **options)
    topic = Topic(settings)
    closer = Closer(settings, store, cast("Producer", topic), Patience(Health(), asyncio.Event()))

    async def announce(until: datetime) -> None:
        for resolution in RESOLUTIONS_MINUTES:
            for bucket in range(2):
                await topic.send(settings.topic("windows.due"), encode(WindowsDue(resolution, bucket, until)))

    async def stands(resolution: int) -> datetime:
        return min(at for key, at in (await store.frontiers()).items() if key.resolution_minutes == resolution)

    async def serve_one() -> WindowsDue:
        due = topic.waiting.popleft()
        before = (await store.frontiers())[BucketKey(due.resolution_minutes, due.bucket)]
        await closer.close(due)
        assert (await store.frontiers())[BucketKey(due.resolution_minutes, due.bucket)] >= before
        return due

    await announce(T0 + 24 * HOUR)
    served = 0
    while await stands(60) < T0 + 24 * HOUR:
        await serve_one()
        served += 1
    # 24 hours of one statement each, for both buckets at once, among 8 that take turns.
    assert served <= 24 * 8
    assert await stands(1) < T0 + 3 * HOUR

    await store_progress(database_url, T0 + 25 * HOUR + 6 * MINUTE, first_arrival=T0)
    await announce(T0 + 25 * HOUR)
    waiting = len(topic.waiting)
    for _ in range(waiting):
        await serve_one()
    assert await stands(60) == T0 + 25 * HOUR, "a new hour is closed as soon as everybody had one turn"
    assert await stands(1) < T0 + 4 * HOUR
    while topic.waiting:
        await serve_one()
    assert {await stands(resolution) for resolution in RESOLUTIONS_MINUTES} == {T0 + 25 * HOUR}
    await assert_closed_as_expected(database_url, versions)


async def test_a_bucket_that_is_closed_twice_at_once_has_one_result(pool: Pool, database_url: str) -> None:
    versions = [version(meter, T0 + n * MINUTE, n) for n in range(60) for meter in UTILITIES]
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    stores = [await begin(pool, database_url, T0 + 5 * HOUR, statement_readings=30) for _ in range(3)]

    async def close(store: WindowStore) -> None:
        for key in sorted(store.keys):
            while (await store.advance(key, T0 + HOUR) or T0) < T0 + HOUR:
                pass

    await asyncio.gather(*(close(store) for store in stores))
    await assert_closed_as_expected(database_url, versions)
