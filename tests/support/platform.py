"""A platform of a test's own: topics under a prefix on the shared Kafka, its own database, real service processes."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from services.local.processes import ChildProcess
from services.platform.kafka import GroupConsumer, Partition, Producer, acknowledged
from services.platform.kafka_access import KafkaAccess
from services.platform.settings import ENVIRONMENT_PREFIX, KafkaSettings, load
from services.platform.topics import READING_TOPICS, for_replay, load_topics
from tests.support.kafka_changes import ChangingAdmin
from tests.support.polling import eventually_async

REPOSITORY = Path(__file__).parents[2]
# Of each process, where a test failed: what is missing in the end often began long before.
SHOWN_LINES = 200


@dataclass
class Platform:
    """Addresses, names and processes of one test."""

    bootstrap_servers: str
    database_url: str
    prefix: str
    folder: Path
    processes: list[ChildProcess] = field(default_factory=list)
    security: Mapping[str, str] = field(default_factory=dict)
    """Variables that say how to log in to Kafka; none: in plaintext."""

    @property
    def kafka(self) -> KafkaAccess:
        """How the test itself reaches Kafka: as its services do."""
        told = {name.removeprefix(ENVIRONMENT_PREFIX).lower(): value for name, value in self.security.items()}
        return load(KafkaSettings, kafka_bootstrap_servers=self.bootstrap_servers, **told).kafka_access()

    @property
    def environment(self) -> dict[str, str]:
        """What a service of this platform finds in its environment."""
        return {
            **os.environ,
            "METERPOST_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            **self.security,
            "METERPOST_DATABASE_URL": self.database_url,
            "METERPOST_TOPIC_PREFIX": self.prefix,
            "METERPOST_SHUTDOWN_DEADLINE_SECONDS": "5",
            "METERPOST_ALLOWED_DESTINATIONS": "127.0.0.0/8, ::1",
        }

    def topic(self, name: str) -> str:
        """Return a topic's name on the shared broker."""
        return self.prefix + name

    async def declare_topics(self, *, partitions: int = 2, replay: bool = True) -> None:
        """Create this platform's topics; with `replay`, the test sets the arrival of readings."""
        specs = [replace(topic, partitions=partitions) for topic in load_topics()]
        async with self.admin() as admin:
            await admin.declare([for_replay(spec) if replay else spec for spec in specs], prefix=self.prefix)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[ChangingAdmin]:
        """Lend an admin client."""
        admin = ChangingAdmin(self.kafka)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.stop()

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Producer]:
        """Lend a producer."""
        producer = Producer(self.kafka, client="test")
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def reading_partitions(self) -> frozenset[Partition]:
        """Return the partitions of both reading topics."""
        async with self.admin() as admin:
            return await admin.partitions([self.topic(name) for name in READING_TOPICS])

    async def tick(self, at: datetime) -> None:
        """Move the arrival clock of every reading partition on to `at`."""
        partitions = await self.reading_partitions()
        async with self.producer() as producer:
            await acknowledged(
                [
                    await producer.enqueue(topic, None, partition=partition, created_at=at, is_tick=True)
                    for topic, partition in sorted(partitions)
                ]
            )

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> ChildProcess:
        """Start `python -m ARGUMENTS…` as a process of this platform; it is ended with the test."""
        name = f"{'-'.join(arguments)}-{len(self.processes)}".replace("services.", "")
        process = ChildProcess(
            name=name,
            command=[sys.executable, "-m", *arguments],
            log_file=self.folder / f"{name}.log",
            pid_file=self.folder / f"{name}.pid",
            working_folder=REPOSITORY,
            environment={**self.environment, "METERPOST_INSTANCE": name, **(environment or {})},
        )
        process.start()
        self.processes.append(process)
        return process

    def end_processes(self) -> None:
        """End every process that the test started."""
        for process in self.processes:
            if process.is_running and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
            process.stop(timeout_s=6)

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Ask the database."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return [dict(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    async def value(self, query: str, *arguments: object) -> Any:
        """Ask the database for one value."""
        [row] = await self.fetch(query, *arguments)
        return next(iter(row.values()))

    async def ingested(self, timeout_s: float = 30) -> None:
        """Wait until everything on the reading topics has been stored."""
        ends = await self.end_offsets()

        async def caught_up() -> bool:
            rows = await self.fetch("SELECT topic, partition, next_offset FROM ingest_progress")
            stored = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
            return all(stored.get(key, 0) >= end for key, end in ends.items())

        await eventually_async(caught_up, timeout_s, because="ingest caught up")

    async def end_offsets(self) -> dict[Partition, int]:
        """Return where each reading partition ends."""
        consumer = GroupConsumer(
            self.kafka,
            group=self.prefix + "look",
            topics=[self.topic(name) for name in READING_TOPICS],
            client="test",
        )
        await consumer.start()
        try:
            return await consumer.end_offsets(await self.reading_partitions())
        finally:
            await consumer.stop()


@contextmanager
def running(platform: Platform) -> Iterator[Platform]:
    """End the platform's processes with the test; the end of their logs is shown when it failed."""
    try:
        yield platform
    finally:
        platform.end_processes()
        for process in platform.processes:
            print(f"--- {process.name} (exit code {process.exit_code})\n{process.log_tail(SHOWN_LINES)}")
