"""Servers that are away, in all the ways they can be: ingest waits, keeps its partitions, and goes on by itself."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from services.local.processes import ChildProcess
from services.platform.kafka import acknowledged
from services.platform.topics import READINGS_LOGGER
from tests.support.exactness import assert_exact
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import pulses, seed_catalog, upload
from tests.support.stalling_proxy import StallingProxy

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MIB = 1024 * 1024
BACKLOG_MIB = 160
MOST_GROWTH_MIB = 90
"""Generous: of each partition what is being fetched, what waits and what is being judged may be in memory."""


@dataclass
class Scene:
    """A running ingest with something stored, and the log that is published to it."""

    platform: Platform
    service: ChildProcess
    epochs: dict[tuple[str, int], int] = field(default_factory=dict)
    minute: int = 0

    async def publish(self, minutes: int, *, padding: str = "") -> None:
        """Publish some minutes of two loggers, with corrections; unknown fields may pad the records."""
        async with self.platform.producer() as producer:
            futures = []
            for minute in range(self.minute, self.minute + minutes):
                measured_at = T0 + minute * MINUTE
                for logger in ("LG-0", "LG-1"):
                    readings = [pulses(number, measured_at, minute, note=padding) for number in range(1, 6)]
                    if minute % 7 == 1:
                        readings.append(pulses(1, measured_at - MINUTE, 5, revision=1))
                    value = upload(logger, readings)
                    topic = self.platform.topic(READINGS_LOGGER)
                    futures.append(
                        await producer.enqueue(topic, value, key=logger.encode(), created_at=measured_at + MINUTE)
                    )
            await acknowledged(futures)
        self.minute += minutes

    async def owners(self) -> dict[tuple[str, int], int]:
        """Return the epochs: a rebalance would have raised them."""
        rows = await self.platform.fetch("SELECT topic, partition, epoch FROM ingest_progress")
        return {(row["topic"], row["partition"]): row["epoch"] for row in rows}

    def waits(self, words: str = "") -> int:
        """Count how often the service said that it waits for a server."""
        lines = Path(self.service.log_file).read_text(encoding="utf-8").splitlines()
        waiting = [line for line in lines if '"server_away"' in line or '"statement_too_slow"' in line]
        return sum(words in line for line in waiting)

    async def until_waiting(self, words: str, times: int = 2, timeout_s: float = 30) -> None:
        """Return once the service has said so often that it waits."""
        await eventually_async(
            lambda: self.waits(words) >= times, timeout_s, because=f"ingest waits because of {words}"
        )

    def memory_mib(self) -> float:
        """Return the service's resident memory."""
        status = Path(f"/proc/{self.service.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    async def assert_went_on(self) -> None:
        """Wait until everything is stored; then nothing is lost or double, and nobody left the group."""
        await self.platform.ingested(60)
        assert self.service.is_running
        assert await self.owners() == self.epochs
        await assert_exact(self.platform, [T0 + self.minute * MINUTE / 2])


async def scene(platform: Platform, **environment: str) -> Scene:
    """Start ingest and let it store something."""
    await platform.declare_topics()
    await seed_catalog(platform.database_url)
    quick = {"METERPOST_BATCH_READINGS": "100", "METERPOST_DATABASE_TIMEOUT_SECONDS": "1"}
    made = Scene(platform, platform.start("services.ingest", environment={**quick, **environment}))
    await made.publish(20)
    await platform.ingested()
    made.epochs = await made.owners()
    assert len(made.epochs) == 4
    return made


@asynccontextmanager
async def connected(url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_full_disk_and_a_backlog_that_waits_outside_of_memory(platform: Platform) -> None:
    made = await scene(platform)
    before = made.memory_mib()
    await platform.fetch(
        "CREATE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END$$"
    )
    await platform.fetch(
        "CREATE TRIGGER full_disk BEFORE UPDATE ON ingest_progress FOR EACH ROW EXECUTE FUNCTION disk_is_full()"
    )
    for _part in range(10):
        await made.publish(BACKLOG_MIB // 10 // 2, padding="x" * (MIB * 9 // 10 // 5))
    await made.until_waiting("could not extend file", times=5)
    print(f"memory before {before:.0f} MiB, with the backlog {made.memory_mib():.0f} MiB")
    assert made.memory_mib() - before < MOST_GROWTH_MIB
    # Space on a disk comes back without a lock on the table, for which a batch that waits for its turn would be ended.
    await platform.fetch(
        "CREATE OR REPLACE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$"
    )
    await made.assert_went_on()


async def occupy(url: str) -> asyncio.StreamWriter | None:
    """Take one of the server's connections by beginning to log in; None where none is left.

    To stop there costs the server as much of its limit as a session does, and both sides nearly no time.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    protocol_3 = struct.pack("!i", 196_608) + b"user\0meterpost\0database\0postgres\0\0"
    writer.write(struct.pack("!i", len(protocol_3) + 4) + protocol_3)
    asks_for_a_password = await reader.read(1) == b"R"
    if not asks_for_a_password:
        writer.close()
    return writer if asks_for_a_password else None


async def test_no_connection_is_left(platform: Platform) -> None:
    made = await scene(platform)
    taken: list[asyncio.StreamWriter] = []
    async with connected(platform.database_url) as observer:

        async def ingest_is_out() -> bool:
            await observer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            # What is given back is taken at once, before ingest tries again.
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                if one := await occupy(platform.database_url):
                    taken.append(one)
            sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            return await observer.fetchval(sessions) == 1 and made.waits("too many clients") > 0

        try:
            await made.publish(20)
            await eventually_async(ingest_is_out, 30, because="ingest gets no connection")
        finally:
            for writer in taken:
                writer.close()
    await made.assert_went_on()


async def test_locks_that_are_held_for_long(platform: Platform) -> None:
    made = await scene(platform)
    for table in ("reading", "ingest_progress"):
        waits = made.waits("had not finished a statement")
        async with connected(platform.database_url) as blocker, blocker.transaction():
            await blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            await made.publish(20)
            await made.until_waiting("had not finished a statement", times=waits + 2)
        await platform.ingested()
    await made.assert_went_on()


async def test_a_server_that_accepts_connections_and_says_nothing(platform: Platform) -> None:
    """Commands time out, and what the hung server gets to do later cannot do harm."""
    url = urlsplit(platform.database_url)
    assert url.hostname is not None
    assert url.port is not None
    async with StallingProxy(url.hostname, url.port).running() as proxy:
        through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")))
        made = await scene(platform, METERPOST_DATABASE_URL=through)
        for _time in range(2):
            waits = made.waits("TimeoutError")
            proxy.stall()
            await made.publish(20)
            await made.until_waiting("TimeoutError", times=waits + 1)
            proxy.resume()
            await platform.ingested(60)
        await made.assert_went_on()


async def test_postgres_restarted_in_good_order(platform: Platform, postgres_server: PostgresServer) -> None:
    made = await scene(platform)
    await made.publish(100)
    await asyncio.to_thread(postgres_server.stop)
    try:
        await made.publish(100)
        await made.until_waiting("PostgreSQL", times=3)
    finally:
        await asyncio.to_thread(postgres_server.start)
    await made.assert_went_on()


async def test_kafka_away_for_longer_than_the_session(platform: Platform, kafka_server: KafkaServer) -> None:
    """The broker counts a member's silence anew from its own start: nobody is put out of the group."""
    made = await scene(platform)
    before = made.memory_mib()
    kafka_server.kill()
    back_at = time.monotonic() + 15
    try:
        await eventually_async(lambda: time.monotonic() >= back_at, 20, because="longer than any session")
    finally:
        await asyncio.to_thread(kafka_server.start)
    await made.publish(20)
    assert made.memory_mib() - before < MOST_GROWTH_MIB
    await made.assert_went_on()
