"""A partition that is stuck holds windows open, is named, and can be left behind: on a real Kafka and PostgreSQL."""

from datetime import datetime, timedelta

import pytest

from services.core.windows import DEFAULT_GRACE, due_until
from services.platform.kafka import acknowledged
from services.platform.metrics import REGISTRY, WINDOWS_HELD
from services.platform.topics import READINGS_BRIDGE
from services.windowing.forcing import Force, furthest, holding
from services.windowing.held import tell_held, windows_held
from tests.support.closing import MINUTE, T0
from tests.support.command import Meterpost
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import metered, seed_catalog, upload

HEALTHY, STUCK = range(1, 6), range(6, 11)
STUCK_PARTITION = 1
QUICK = {"METERPOST_LOOK_EVERY_SECONDS": "0.2"}


async def publish(platform: Platform, partition: int, meters: range, minutes: range) -> None:
    """Publish one reading a minute of each meter, which arrives ten seconds after its minute."""
    async with platform.producer() as producer:
        for minute in minutes:
            measured_at = T0 + minute * MINUTE
            value = upload("BR-0", [metered(meter, measured_at, 100 + minute) for meter in meters])
            at = measured_at + MINUTE + timedelta(seconds=10)
            await acknowledged(
                [
                    await producer.enqueue(
                        platform.topic(READINGS_BRIDGE), value, key=b"BR-0", partition=partition, created_at=at
                    )
                ]
            )


async def tick(platform: Platform, at: datetime, *, but_stuck: bool) -> None:
    """Move the arrival clock on, on the partition that is stuck or not."""
    partitions = await platform.reading_partitions()
    stuck = (platform.topic(READINGS_BRIDGE), STUCK_PARTITION)
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(topic, None, partition=partition, created_at=at, is_tick=True)
                for topic, partition in sorted(partitions)
                if not (but_stuck and (topic, partition) == stuck)
            ]
        )


async def closed(platform: Platform, resolution: int, until: datetime) -> None:
    async def reached() -> bool:
        rows = await platform.fetch("SELECT closed_until FROM window_closed WHERE resolution_minutes = $1", resolution)
        return bool(rows) and rows[0]["closed_until"] == until

    await eventually_async(reached, 30, because=f"{resolution}-minute windows closed until {until}")


@pytest.fixture
def meterpost(platform: Platform) -> Meterpost:
    return Meterpost(
        platform.folder,
        {
            "METERPOST_DATABASE_URL": platform.database_url,
            "METERPOST_KAFKA_BOOTSTRAP_SERVERS": platform.bootstrap_servers,
            "METERPOST_TOPIC_PREFIX": platform.prefix,
        },
    )


# What a window of a resolution must hold by what is recorded of it: the versions that were stored before the offsets.
RECOMPUTED = """
SELECT w.window_start, v.meter_id, sum(v.value)::bigint AS pulses
FROM window_closing w
JOIN window_forced f ON f.resolution_minutes = w.resolution_minutes AND f.bucket = w.bucket
                    AND w.window_start >= f.from_start AND w.window_start < f.until_start
JOIN reading v ON v.measured_at >= w.window_start AND v.meter_id % 8 = w.bucket
              AND v.measured_at < w.window_start + $1::integer * interval '1 minute'
WHERE w.resolution_minutes = $1 AND v.arrived_at <= w.cut_off
  AND was_stored(f.stored_before, v.source_topic, v.source_partition, v.source_offset)
GROUP BY 1, 2 ORDER BY 1, 2
"""
HELD = """
SELECT m.window_start, m.meter_id, m.pulses FROM measurement m
JOIN window_closing w ON w.resolution_minutes = m.resolution_minutes AND w.window_start = m.window_start
                     AND w.bucket = m.meter_id % 8
WHERE m.resolution_minutes = $1 AND w.force_id IS NOT NULL ORDER BY 1, 2
"""


async def test_a_stuck_partition_is_left_behind_by_decision_and_what_it_brings_later_is_listed(
    platform: Platform, meterpost: Meterpost
) -> None:
    await platform.declare_topics()
    await seed_catalog(platform.database_url, meters=10)
    stuck = f"{platform.topic(READINGS_BRIDGE)}/{STUCK_PARTITION}"
    platform.start("services.ingest")
    await publish(platform, 0, HEALTHY, range(12))
    await publish(platform, STUCK_PARTITION, STUCK, range(4))
    await tick(platform, T0 + 20 * MINUTE, but_stuck=True)
    await platform.ingested()
    for _ in range(2):
        platform.start("services.windowing", environment=QUICK)
    await closed(platform, 1, T0 - MINUTE)

    status = meterpost.json("windows", "status")
    [holder] = status["held_open_by"]
    assert (f"{holder['topic']}/{holder['partition']}", holder["held_windows"]) == (stuck, 15)
    assert holder["behind_seconds"] == (16 * MINUTE - timedelta(seconds=10)).total_seconds()
    assert {one["resolution_minutes"]: one["held_windows"] for one in status["resolutions"]} == {
        1: 15,
        5: 3,
        15: 1,
        60: 1,
    }
    assert stuck in meterpost.ok("windows", "status")

    force = ("windows", "force-close", "--reason", "LG-9 burnt down")
    assert "no partition is left" in meterpost.refused(*force, "--until", "2026-11-20T10:30:00Z", "--yes")
    assert "add --yes" in meterpost.refused(*force, "--until", "2026-11-20T10:10:00Z")
    assert "names no partition" in meterpost.refused(
        *force, "--until", "2026-11-20T10:10:00Z", "--partition", "readings.bridge/7", "--yes"
    )
    assert "none of the partitions named" in meterpost.refused(
        *force, "--until", "2026-11-20T10:10:00Z", "--partition", "readings.bridge/0", "--yes"
    )
    assert "--reason is empty" in meterpost.refused(
        "windows", "force-close", "--until", "2026-11-20T10:10:00Z", "--reason", " "
    )
    decided = meterpost.json(*force, "--until", "2026-11-20T10:10:00Z", "--yes")
    assert (decided["partitions"], decided["waits_for"]) == ([stuck], [])
    for resolution, until in {1: T0 + 10 * MINUTE, 5: T0 + 10 * MINUTE, 15: T0, 60: T0}.items():
        await closed(platform, resolution, until)
    before = {resolution: await platform.fetch(HELD, resolution) for resolution in (1, 5)}
    assert [(row["window_start"], row["meter_id"]) for row in before[1]] == [
        (T0 + minute * MINUTE, meter) for minute in range(10) for meter in (range(1, 11) if minute < 4 else HEALTHY)
    ]
    assert {row["pulses"] for row in before[5] if row["meter_id"] in STUCK} == {100 + 101 + 102 + 103}
    [audited] = await platform.fetch("SELECT action, details, acted_by FROM operator_action")
    assert audited["action"] == "windows.force_close"
    assert "LG-9 burnt down" in audited["details"]

    # The partition comes back, with readings that arrived in time: only they were not stored then.
    await publish(platform, STUCK_PARTITION, STUCK, range(4, 12))
    await tick(platform, T0 + 20 * MINUTE + timedelta(seconds=1), but_stuck=False)
    await platform.ingested()
    await closed(platform, 1, T0 + 15 * MINUTE)
    for resolution in (1, 5):
        assert await platform.fetch(HELD, resolution) == before[resolution]
        assert await platform.fetch(RECOMPUTED, resolution) == before[resolution]
    # By the recorded offsets everything comes out again, and windows that hold nothing in a bucket lack nothing.
    verified = meterpost.json("windows", "verify", "--from", "2026-11-20T09:00:00Z", "--to", "2026-11-20T12:00:00Z")
    assert (verified["difference_count"], verified["differences"]) == (0, [])
    assert verified["rows"] == await platform.value("SELECT count(*) FROM measurement")
    rest = await platform.fetch(
        "SELECT DISTINCT window_start, force_id FROM window_closing "
        "WHERE window_start >= $1 AND resolution_minutes = 1 ORDER BY 1",
        T0 + 10 * MINUTE,
    )
    assert [tuple(row.values()) for row in rest] == [(T0 + minute * MINUTE, None) for minute in (10, 11)]

    late = meterpost.json(
        "late", "list", "--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T11:00:00Z", "--limit", "0"
    )
    found = {(one["resolution_minutes"], one["meter_id"], one["measured_at"]): one for one in late["readings"]}
    assert found.keys() == {
        (resolution, meter, f"2026-11-20T10:0{minute}:00Z")
        for resolution in (1, 5)
        for meter in STUCK
        for minute in range(4, 10)
    }
    assert all(one["is_forced"] and one["late_by_seconds"] < 0 for one in late["readings"])
    status = meterpost.json("windows", "status")
    assert status["held_open_by"] == []
    [told] = status["forced"]
    assert (told["partitions"], told["reason"]) == ([stuck], "LG-9 burnt down")
    assert (told["windows"], told["windows_with_rows"]) == (11 + 3 + 1 + 1, 10 + 2)  # empty ones from the opening on


async def test_partitions_that_a_decision_leaves_out_and_that_hold_windows_too_are_named(
    platform: Platform, meterpost: Meterpost
) -> None:
    await platform.declare_topics()
    fresh = meterpost.ok("windows", "status")
    assert fresh == "No window was ever closed: windows open with the first reading.\n"
    first, second, *others = sorted(await platform.reading_partitions())
    marks = {first: T0, second: T0, **dict.fromkeys(others, T0 + 20 * MINUTE)}
    for (topic, partition), watermark in marks.items():
        await platform.fetch(
            "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, first_arrival, epoch, owner) "
            "VALUES ($1, $2, 1, $3, $3, 1, 'test')",
            *(topic, partition, watermark),
        )
    await platform.fetch("INSERT INTO window_closed VALUES (5, $1, $1)", T0)
    await platform.fetch("INSERT INTO window_frontier VALUES (5, 0, $1)", T0)
    names = [f"{topic}/{partition}" for topic, partition in (first, second)]
    force = ("windows", "force-close", "--until", "2026-11-20T10:10:00Z", "--reason", "burnt down", "--yes")
    told = meterpost.ok(*force, "--partition", names[0])
    assert f"without {names[0]}, as soon as {names[1]} has passed" in told
    assert "at its next look" not in told
    assert meterpost.json(*force, "--partition", names[0])["waits_for"] == [names[1]]
    assert "at its next look" in meterpost.ok(*force)
    assert "no partition is left" in meterpost.refused(*force[:2], "--until", "9999-12-31T23:59:59Z", *force[4:])


def test_the_partition_that_holds_windows_open_is_named_by_a_metric() -> None:
    marks = {("readings.bridge", 0): T0 + 20 * MINUTE, ("readings.bridge", 1): T0 + 4 * MINUTE, ("x", 0): None}
    assert windows_held(marks, 5, DEFAULT_GRACE) == {
        ("readings.bridge", 0): 0,
        ("readings.bridge", 1): 3,
        ("x", 0): None,
    }
    assert windows_held({("x", 0): None}, 5, DEFAULT_GRACE) == {("x", 0): None}
    tell_held(marks, DEFAULT_GRACE)
    try:
        samples = REGISTRY.restricted_registry(["meterpost_windows_held"]).collect()
        told = {tuple(sample.labels.values()): sample.value for family in samples for sample in family.samples}
        assert told == {("readings.bridge", "0"): 0, ("readings.bridge", "1"): 16, ("x", "0"): float("inf")}
    finally:
        WINDOWS_HELD.clear()


def test_a_decision_leaves_only_its_own_partitions_behind() -> None:
    marks: dict[tuple[str, int], datetime | None] = {
        ("t", 0): T0 + 20 * MINUTE,
        ("t", 1): T0 + 12 * MINUTE,
        ("t", 2): None,
    }
    one = Force(1, T0 + 10 * MINUTE, frozenset({"t/2"}))
    both = Force(2, T0 + 10 * MINUTE, frozenset({"t/1", "t/2"}))
    all_of_them = Force(3, T0 + 10 * MINUTE, frozenset({"t/0", "t/1", "t/2"}))
    assert one.due_until(marks, 1, DEFAULT_GRACE) == due_until(T0 + 12 * MINUTE, 1, DEFAULT_GRACE)
    assert both.due_until(marks, 1, DEFAULT_GRACE) == T0 + 10 * MINUTE
    assert both.due_until(marks, 15, DEFAULT_GRACE) == T0
    assert all_of_them.due_until(marks, 1, DEFAULT_GRACE) is None
    assert furthest([all_of_them], marks, 1, DEFAULT_GRACE) is None
    assert furthest([one, both], marks, 1, DEFAULT_GRACE) == (T0 + 10 * MINUTE, 2)
    assert holding(marks, T0 + 10 * MINUTE, DEFAULT_GRACE) == {("t", 1), ("t", 2)}
    assert holding(marks, T0, DEFAULT_GRACE) == {("t", 2)}
