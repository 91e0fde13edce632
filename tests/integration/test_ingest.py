"""Ingest on the real broker and database: exactly once, whatever happens to whom."""

import asyncio
import contextlib
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import asyncpg
import numpy as np
import pytest

from services.core.columns import Columns
from services.core.readings import ReadingVersion
from services.ingest.batch import Advance, Batch, Position
from services.ingest.binary_copy import encode_pieces
from services.ingest.store import IngestStore
from services.ingest.write_plan import EncodedPlan, WritePlan, encode_plan, merge_everything
from services.local.kafka_server import KafkaServer
from services.local.ports import free_port
from services.local.postgres_server import PostgresServer
from services.platform.errors import Superseded, Unavailable
from services.platform.kafka import acknowledged
from services.platform.postgres import connect_pool
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import metered, pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EQUATION = """
    SELECT (SELECT count(*) FROM reading) + (SELECT count(*) FROM reading_superseded) AS versions,
           (SELECT count(*) FROM rejected_reading) AS refused,
           (SELECT coalesce(sum(stored_count), 0) FROM ingest_progress) AS stored_count,
           (SELECT coalesce(sum(refused_count), 0) FROM ingest_progress) AS refused_count
"""


async def prepare(platform: Platform, *, partitions: int = 2, replay: bool = True) -> None:
    await platform.declare_topics(partitions=partitions, replay=replay)
    await seed_catalog(platform.database_url)


async def publish(platform: Platform, topic: str, records: list[tuple[str, bytes, datetime]]) -> None:
    """Publish (key, value, arrival) in order."""
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(platform.topic(topic), value, key=key.encode(), created_at=arrival)
                for key, value, arrival in records
            ]
        )


async def assert_equations(platform: Platform, *, stored: int, refused: int) -> None:
    [counts] = await platform.fetch(EQUATION)
    expected = {"versions": stored, "refused": refused, "stored_count": stored, "refused_count": refused}
    assert {name: int(count) for name, count in counts.items()} == expected


async def test_bad_records_are_refused_with_their_reason_and_everything_else_is_stored(platform: Platform) -> None:
    await prepare(platform)
    arrival = T0 + MINUTE
    good = pulses(1, T0, 42)
    records = [
        ("LG-0", upload("LG-0", [good, pulses(9, T0, 1), pulses(2, T0, 7)]), arrival),
        ("LG-0", b"this is no JSON", arrival),
        ("LG-0", upload("LG-0", [pulses(3, T0, 3), {**good, "pulses": "many"}]), arrival),
        ("LG-404", upload("LG-404", [good]), arrival),
        ("LG-0", b'{"x":"' + b"x" * 2_000_000 + b'"}', arrival),
        ("LG-0", upload("LG-0", [pulses(1, T0 + 10 * MINUTE, 1), pulses(4, T0, 4)]), arrival),
    ]
    await publish(platform, READINGS_LOGGER, records)
    await publish(platform, READINGS_BRIDGE, [("BR-0", upload("BR-0", [metered(10, T0, 9)]), arrival)])
    service = platform.start("services.ingest")
    await platform.ingested()
    rejected = await platform.fetch("SELECT reason, source_place, device_id, original FROM rejected_reading")
    assert sorted(row["reason"] for row in rejected) == [
        "in_future",
        "malformed",
        "schema_violation",
        "too_large",
        "unknown_device",
        "unknown_input",
    ]
    originals = {row["reason"]: bytes(row["original"]) for row in rejected}
    assert originals["malformed"] == b"this is no JSON"
    assert len(originals["too_large"]) == 2_000_008
    assert b'"many"' in originals["schema_violation"]
    assert await platform.value("SELECT array_agg(value ORDER BY meter_id) FROM reading") == [42, 7, 3, 4, 9]
    await assert_equations(platform, stored=5, refused=6)
    assert service.is_running


async def test_versions_arrive_in_any_order_and_the_newest_stands(platform: Platform) -> None:
    await prepare(platform)
    first = ("LG-0", upload("LG-0", [pulses(1, T0, 1), pulses(1, T0, 2), pulses(1, T0, 9, revision=3)]), T0 + MINUTE)
    later = ("LG-0", upload("LG-0", [pulses(1, T0, 5, revision=2), pulses(2, T0, 6)]), T0 + 2 * MINUTE)
    platform.start("services.ingest")
    await publish(platform, READINGS_LOGGER, [first])
    await platform.ingested()
    await publish(platform, READINGS_LOGGER, [later])
    await publish(platform, READINGS_BRIDGE, [("BR-0", upload("BR-0", [metered(2, T0, 7)]), T0 + 3 * MINUTE)])
    await platform.ingested()
    newest = await platform.fetch("SELECT meter_id, value, revision FROM reading ORDER BY meter_id")
    assert newest == [{"meter_id": 1, "value": 9, "revision": 3}, {"meter_id": 2, "value": 7, "revision": 0}]
    assert await platform.value("SELECT array_agg(value ORDER BY value) FROM reading_superseded") == [1, 2, 5, 6]
    await assert_equations(platform, stored=6, refused=0)


async def test_arrival_is_monotone_within_a_partition(platform: Platform) -> None:
    await prepare(platform, partitions=1)
    late_clock = [
        ("LG-0", upload("LG-0", [pulses(1, T0, 1)]), T0 + 3 * MINUTE),
        ("LG-0", upload("LG-0", [pulses(2, T0, 1)]), T0 + MINUTE),
    ]
    await publish(platform, READINGS_LOGGER, late_clock)
    platform.start("services.ingest")
    await platform.ingested()
    assert await platform.value("SELECT array_agg(DISTINCT arrived_at) FROM reading") == [T0 + 3 * MINUTE]
    logger = platform.topic(READINGS_LOGGER)
    assert await platform.value("SELECT watermark FROM ingest_progress WHERE topic = $1", logger) == T0 + 3 * MINUTE


async def test_a_device_registered_after_the_start_is_known_at_once(platform: Platform) -> None:
    await platform.declare_topics()
    platform.start("services.ingest")
    await eventually_async(
        lambda: platform.value("SELECT count(*) FROM ingest_progress"), 30, because="partitions are claimed"
    )
    await seed_catalog(platform.database_url)
    await publish(platform, READINGS_LOGGER, [("LG-0", upload("LG-0", [pulses(1, T0, 1)]), T0 + MINUTE)])
    await platform.ingested()
    await assert_equations(platform, stored=1, refused=0)


def many_records(rounds: int) -> list[tuple[str, bytes, datetime]]:
    """Return uploads of two loggers with corrections: 10 % of the minutes come twice."""
    chance = random.Random(7)
    records = []
    for number in range(rounds):
        measured_at = T0 + number * MINUTE
        for logger in ("LG-0", "LG-1"):
            readings = [pulses(input_, measured_at, number + input_) for input_ in range(1, 6)]
            if number and chance.random() < 0.1:
                readings.append(pulses(1, measured_at - MINUTE, 7, revision=1))
            records.append((logger, upload(logger, readings), measured_at + MINUTE))
    return records


def count_readings(records: list[tuple[str, bytes, datetime]]) -> int:
    return sum(value.count(b'"pulses"') for _key, value, _arrival in records)


async def test_killed_again_and_again_nothing_is_lost_and_nothing_double(platform: Platform) -> None:
    """Two members of the group, one killed with SIGKILL while it stores, so that rebalances and crashes mix."""
    await prepare(platform, partitions=3)
    small = {"METERPOST_BATCH_READINGS": "50", "METERPOST_SESSION_SECONDS": "2"}
    records = many_records(1500)
    services = [platform.start("services.ingest", environment=small)]
    per_round = len(records) // 5
    for first in range(0, len(records), per_round):
        services.append(platform.start("services.ingest", environment=small))
        before = await stored(platform)
        await publish(platform, READINGS_LOGGER, records[first : first + per_round])

        async def moved(before: int = before) -> bool:
            return await stored(platform) > before

        await eventually_async(moved, 30, because="readings are being stored")
        services.pop(0).kill()
        assert await stored(platform) < count_readings(records[: first + per_round])
    await platform.ingested(60)
    await assert_equations(platform, stored=count_readings(records), refused=0)


async def stored(platform: Platform) -> int:
    return int(await platform.value("SELECT coalesce(sum(stored_count), 0) FROM ingest_progress"))


async def test_a_zombie_cannot_write(platform: Platform) -> None:
    """A consumer stopped with a batch in hand is superseded; continued, it is refused, says so and joins again."""
    await prepare(platform, partitions=1)
    port = free_port()
    quick = {"METERPOST_BATCH_READINGS": "1", "METERPOST_SESSION_SECONDS": "2"}
    zombie = platform.start("services.ingest", environment={**quick, "METERPOST_HEALTH_PORT": str(port)})
    first, second, third = (many_records(60)[number * 40 : (number + 1) * 40] for number in range(3))
    await publish(platform, READINGS_LOGGER, first)
    await platform.ingested()
    assert zombie.pid is not None
    connection = await asyncpg.connect(platform.database_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE reading IN SHARE MODE")
        await publish(platform, READINGS_LOGGER, second)

        async def waits_with_a_batch() -> bool:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'"
            )
            return bool(await platform.value(waiting))

        await eventually_async(waits_with_a_batch, 10, because="the zombie has a batch in hand")
        os.kill(zombie.pid, signal.SIGSTOP)
    await connection.close()
    successor = platform.start("services.ingest", environment=quick)
    await platform.ingested(60)
    assert await platform.value("SELECT bool_and(owner = $1) FROM ingest_progress", successor.name)
    os.kill(zombie.pid, signal.SIGCONT)
    await publish(platform, READINGS_LOGGER, third)
    await platform.ingested()
    await assert_equations(platform, stored=count_readings(first + second + third), refused=0)

    async def refusal_is_counted() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            return re.search(r"^meterpost_ingest_superseded_total [1-9]", await answer.text(), re.MULTILINE) is not None

    await eventually_async(refusal_is_counted, 20, because="the zombie counts what was refused")
    assert zombie.is_running
    assert successor.is_running


async def test_the_epoch_refuses_an_owner_of_the_past(database_url: str) -> None:
    pool = await connect_pool(database_url, max_size=2)
    try:
        store = IngestStore(pool)
        old = (await store.claim({("readings.logger", 0): 0}, "old"))["readings.logger", 0]
        new = (await store.claim({("readings.logger", 0): 0}, "new"))["readings.logger", 0]
        with pytest.raises(Superseded):
            await store.store(*await one_reading_from(old))
        await store.store(*await one_reading_from(new))
        await store.store(*await one_reading_from(new))  # as after a commit whose answer was lost
        assert await pool.fetchval("SELECT count(*) FROM reading") == 1
        assert await pool.fetchval("SELECT stored_count FROM ingest_progress") == 1
    finally:
        await pool.close()


async def test_a_frozen_owner_cannot_hold_its_partition_for_ever(database_url: str) -> None:
    """A process frozen inside its transaction, in the middle of a COPY even, is ended by its successor."""
    pool = await connect_pool(database_url, max_size=3)
    try:
        store = IngestStore(pool, zombie_after=timedelta(milliseconds=300))
        await store.claim({("readings.logger", 0): 0}, "old")
        frozen = asyncio.Event()

        async def one_piece_and_then_silence() -> AsyncIterator[bytes]:
            yield b"".join(encode_pieces(Columns.of_versions([])))[:-2]
            frozen.set()
            await asyncio.Event().wait()

        async def freeze() -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("UPDATE ingest_progress SET updated_at = now()")
                await connection.copy_to_table("reading", source=one_piece_and_then_silence(), format="binary")

        zombie = asyncio.create_task(freeze())
        await frozen.wait()

        async def taken_over() -> bool:
            try:
                return bool(await store.claim({("readings.logger", 0): 0}, "new"))
            except Unavailable:
                return False

        await eventually_async(taken_over, 20, because="the successor owns the partition")
        assert await pool.fetchval("SELECT owner FROM ingest_progress") == "new"
        zombie.cancel()
        with contextlib.suppress(asyncio.CancelledError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await zombie
    finally:
        pool.terminate()


async def test_a_reading_wrongly_taken_for_new_is_merged_after_all(database_url: str) -> None:
    """The marks are a hint: the primary key judges, and the whole batch takes the merge."""
    pool = await connect_pool(database_url, max_size=2)
    try:
        store = IngestStore(pool)
        position = (await store.claim({("readings.logger", 0): 0}, "me"))["readings.logger", 0]
        batch, plan = await one_reading_from(position)
        await store.store(batch, plan)
        [move] = batch.advances
        again, _plan = await one_reading_from(move.position)
        wrong = WritePlan([(T0.date(), again.versions)], again.versions.take(np.array([], dtype=int)))
        await store.store(again, await encode_plan(wrong))
        assert await pool.fetchval("SELECT array_agg(source_offset) FROM reading") == [1]
        assert await pool.fetchval("SELECT array_agg(source_offset) FROM reading_superseded") == [0]
        assert await pool.fetchval("SELECT stored_count FROM ingest_progress") == 2
    finally:
        await pool.close()


async def one_reading_from(position: Position) -> tuple[Batch, EncodedPlan]:
    version = ReadingVersion(T0, T0 + MINUTE, 1, position.next_offset, 1, 0, 0, 0, 1, 1, False)
    after = Position(position.epoch, position.next_offset + 1, T0 + MINUTE, T0 + MINUTE)
    advance = Advance("readings.logger", 0, position.epoch, position.next_offset, after, 1, 0)
    versions = Columns.of_versions([version])
    return Batch(versions, [], [advance]), await encode_plan(merge_everything(versions))


async def test_postgres_killed_and_restarted(platform: Platform, postgres_server: PostgresServer) -> None:
    await prepare(platform)
    service = platform.start("services.ingest", environment={"METERPOST_BATCH_READINGS": "100"})
    records = many_records(600)
    await publish(platform, READINGS_LOGGER, records[:600])
    await eventually_async(lambda: platform.value("SELECT count(*) FROM reading"), 30, because="readings are stored")
    postgres_server.kill()
    await publish(platform, READINGS_LOGGER, records[600:])
    postgres_server.start()
    await platform.ingested(60)
    await assert_equations(platform, stored=count_readings(records), refused=0)
    assert service.is_running


async def test_kafka_killed_and_restarted(platform: Platform, kafka_server: KafkaServer) -> None:
    await prepare(platform)
    service = platform.start("services.ingest", environment={"METERPOST_BATCH_READINGS": "100"})
    records = many_records(600)
    await publish(platform, READINGS_LOGGER, records[:600])
    await eventually_async(lambda: platform.value("SELECT count(*) FROM reading"), 30, because="readings are stored")
    kafka_server.kill()
    kafka_server.start()
    await publish(platform, READINGS_LOGGER, records[600:])
    await platform.ingested(60)
    await assert_equations(platform, stored=count_readings(records), refused=0)
    assert service.is_running


async def test_the_offset_committed_to_kafka_changes_nothing(platform: Platform) -> None:
    """The database alone says where to read on: here Kafka's hint is far ahead of it."""
    await prepare(platform, partitions=1)
    records = many_records(30)
    first = platform.start("services.ingest")
    await publish(platform, READINGS_LOGGER, records)
    await platform.ingested()
    first.stop(6)
    for table in ("reading", "reading_superseded", "ingest_progress"):
        await platform.fetch(f"DELETE FROM {table}")
    platform.start("services.ingest")
    await platform.ingested()
    await assert_equations(platform, stored=count_readings(records), refused=0)


async def test_on_a_topic_with_the_brokers_time_idle_partitions_are_ticked(platform: Platform) -> None:
    """The same code on LogAppendTime: arrival is the broker's, and the watermarks move on without readings."""
    await prepare(platform, partitions=3, replay=False)
    before = datetime.now(UTC)  # noqa: TID251 - compared with the broker's clock
    measured_at = before.replace(second=0, microsecond=0) - 2 * MINUTE
    ignored = T0 - timedelta(days=300)
    await publish(platform, READINGS_LOGGER, [("LG-0", upload("LG-0", [pulses(1, measured_at, 5)]), ignored)])
    platform.start("services.ingest")
    await platform.ingested()
    arrived_at = await platform.value("SELECT arrived_at FROM reading")
    assert before - timedelta(seconds=1) <= arrived_at <= before + MINUTE

    async def all_partitions_moved() -> Any:
        [row] = await platform.fetch(
            "SELECT count(*) FILTER (WHERE watermark > $1) AS moved FROM ingest_progress", before
        )
        return row["moved"] == 6

    await eventually_async(all_partitions_moved, 30, because="every idle partition has been ticked")
    watermark = await platform.value("SELECT min(watermark) FROM ingest_progress")

    async def clock_goes_on() -> Any:
        return await platform.value("SELECT min(watermark) > $1 FROM ingest_progress", watermark)

    await eventually_async(clock_goes_on, 30, because="ticks go on")
    await assert_equations(platform, stored=1, refused=0)


async def test_a_topic_that_lost_records_stops_ingest_with_a_clear_error(platform: Platform) -> None:
    await prepare(platform, partitions=1)
    await publish(platform, READINGS_LOGGER, many_records(3))
    first = platform.start("services.ingest")
    await platform.ingested()
    first.stop(6)
    await platform.fetch("UPDATE ingest_progress SET next_offset = next_offset + 1000")
    second = platform.start("services.ingest")
    await eventually_async(lambda: not second.is_running, 30, because="ingest stops")
    assert second.exit_code == 4
    assert "has lost records" in second.log_tail()
