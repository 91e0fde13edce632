"""The module that fences aiokafka (with `kafka_ends`, which only looks): safe settings once, and a typed surface.

aiokafka's defaults are unsafe for us (it commits by itself and starts at the end); here nothing is committed unless
asked, reading starts at the earliest record, and the producer is idempotent with acks=all.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from services.core.times import from_epoch_milliseconds, to_epoch_milliseconds
from services.platform.errors import Unavailable
from services.platform.topics import TopicSpec

TICK_HEADER = ("kind", b"tick")
MAX_FETCH_BYTES = 8 * 1024 * 1024
SESSION_TIMEOUT_MS = 10_000
# A consumer that waits for PostgreSQL keeps its membership: only silence (the session) ends it, not slowness.
MAX_POLL_INTERVAL_MS = 24 * 3_600_000

log = structlog.get_logger()
Partition = tuple[str, int]


class Record(NamedTuple):
    """One record; `value` None with the tick header is a tick."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    is_tick: bool


class PartitionBatch(NamedTuple):
    """Records of one partition, in offset order."""

    topic: str
    partition: int
    records: list[Record]


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc] # the base class ships no types
    """Remembers what is assigned. Never blocks, so a rebalance never waits for the database."""

    def __init__(self) -> None:
        self.generation = 0
        self.partitions: frozenset[Partition] = frozenset()

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self.generation += 1
        self.partitions = frozenset()

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self.generation += 1
        self.partitions = frozenset((tp.topic, tp.partition) for tp in assigned)


class GroupConsumer:
    """A member of a consumer group that decides itself where it reads and what it commits."""

    def __init__(self, bootstrap_servers: str, *, group: str, topics: Iterable[str], client: str) -> None:
        self._topics = tuple(topics)
        self._assignment = _Assignment()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=group,
            client_id=client,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=SESSION_TIMEOUT_MS // 4,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            max_partition_fetch_bytes=MAX_FETCH_BYTES,
            metadata_max_age_ms=5_000,
            retry_backoff_ms=250,
        )

    async def start(self) -> None:
        """Connect and join the group. Raises Unavailable where no broker answers."""
        self._consumer.subscribe(self._topics, listener=self._assignment)
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as error:
            await self._consumer.stop()
            raise Unavailable(f"Kafka does not answer: {error}") from error

    async def stop(self) -> None:
        """Leave the group and close; never raises."""
        try:
            async with asyncio.timeout(5):
                await self._consumer.stop()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("consumer_left_badly", error=repr(error))

    @property
    def generation(self) -> int:
        """Grows with every change of the assignment."""
        return self._assignment.generation

    @property
    def assigned(self) -> frozenset[Partition]:
        """What is assigned to this member now."""
        return self._assignment.partitions

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from `offset`."""
        self._consumer.seek(TopicPartition(*partition), offset)

    async def poll(self, *, timeout_ms: int, max_records: int | None = None) -> list[PartitionBatch]:
        """Return what has been fetched, waiting at most `timeout_ms` for something; empty while Kafka is away."""
        try:
            fetched = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
        except KafkaError as error:
            log.warning("poll_failed", error=repr(error))
            await asyncio.sleep(timeout_ms / 1000)
            return []
        return [
            PartitionBatch(
                tp.topic,
                tp.partition,
                [
                    Record(r.offset, r.timestamp, r.key, r.value, r.value is None and TICK_HEADER in r.headers)
                    for r in records
                ],
            )
            for tp, records in fetched.items()
            if records
        ]

    async def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the first offset that the broker still has, by partition."""
        return await self._offsets(self._consumer.beginning_offsets, partitions)

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the offset of the next record to come, by partition."""
        return await self._offsets(self._consumer.end_offsets, partitions)

    async def _offsets(self, ask: Any, partitions: Iterable[Partition]) -> dict[Partition, int]:
        wanted = [TopicPartition(*partition) for partition in partitions]
        try:
            found = await ask(wanted)
        except (KafkaError, OSError) as error:
            raise Unavailable(f"Kafka does not tell offsets: {error!r}") from error
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def highwater(self, partition: Partition) -> int | None:
        """Return the end of the partition as the last fetch saw it; None before the first."""
        offset: int | None = self._consumer.highwater(TopicPartition(*partition))
        return offset

    async def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Commit to Kafka; a hint for lag tools only, so a failure is logged and forgotten."""
        if not next_offsets:
            return
        try:
            async with asyncio.timeout(2):
                await self._consumer.commit({TopicPartition(*p): offset for p, offset in next_offsets.items()})
        except (KafkaError, OSError, TimeoutError) as error:
            log.info("hint_not_committed", error=repr(error))


class Producer:
    """Publishes idempotently with acks=all."""

    def __init__(self, bootstrap_servers: str, *, client: str) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            client_id=client,
            enable_idempotence=True,
            acks="all",
            linger_ms=5,
            max_request_size=4 * 1024 * 1024,
            metadata_max_age_ms=5_000,
            retry_backoff_ms=250,
        )

    async def start(self) -> None:
        """Connect. Raises Unavailable where no broker answers."""
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            await self._producer.stop()
            raise Unavailable(f"Kafka does not answer: {error}") from error

    async def stop(self) -> None:
        """Send what waits and close; never raises."""
        try:
            async with asyncio.timeout(5):
                await self._producer.stop()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("producer_closed_badly", error=repr(error))

    async def enqueue(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        created_at: datetime | None = None,
        is_tick: bool = False,
    ) -> "asyncio.Future[Any]":
        """Hand a record over and return the future of its acknowledgement.

        `created_at` is the record's time on a topic with CreateTime; without it, now.
        """
        try:
            future: asyncio.Future[Any] = await self._producer.send(
                topic,
                value,
                key=b"tick" if is_tick else key,  # the client refuses a record with neither key nor value
                partition=partition,
                timestamp_ms=None if created_at is None else to_epoch_milliseconds(created_at),
                headers=[TICK_HEADER] if is_tick else None,
            )
        except (KafkaError, OSError) as error:
            raise Unavailable(f"Kafka does not take records: {error!r}") from error
        return future

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None = None) -> None:
        """Publish one record and wait for its acknowledgement. Raises Unavailable."""
        await acknowledged([await self.enqueue(topic, value, key=key)])


async def acknowledged(futures: Iterable["asyncio.Future[Any]"]) -> None:
    """Wait until every record is stored by the broker. Raises Unavailable where one is not."""
    try:
        await asyncio.gather(*futures)
    except (KafkaError, OSError) as error:
        raise Unavailable(f"Kafka did not store a record: {error!r}") from error


class Admin:
    """Topics: what they are, and creating those that are missing."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._client: AIOKafkaAdminClient | None = None

    async def start(self) -> None:
        """Connect. Raises Unavailable where no broker answers."""
        client = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap_servers, request_timeout_ms=10_000)
        try:
            await client.start()
        except (KafkaError, OSError) as error:
            await client.close()
            raise Unavailable(f"Kafka does not answer: {error}") from error
        self._client = client

    async def stop(self) -> None:
        """Close."""
        if self._client is not None:
            await self._client.close()

    async def partitions(self, topics: Iterable[str]) -> frozenset[Partition]:
        """Return all partitions of the topics, as the broker knows them now.

        Raises Unavailable where the broker does not answer or does not know one of the topics.
        """
        wanted = list(topics)
        described = await self._ask("describe_topics", wanted)
        found: set[Partition] = set()
        for topic in described:
            if topic["error_code"]:
                raise Unavailable(f"Kafka says of topic {topic['topic']}: {for_code(topic['error_code']).__name__}")
            found.update((topic["topic"], partition["partition"]) for partition in topic["partitions"])
        return frozenset(found)

    async def time_types(self, topics: Iterable[str]) -> dict[str, str]:
        """Return each topic's message.timestamp.type."""
        name = "message.timestamp.type"
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic, configs={name: ""}) for topic in topics]
        found: dict[str, str] = {}
        for response in await self._ask("describe_configs", resources):
            for code, _message, _kind, topic, entries in response.resources:
                if code:
                    raise Unavailable(f"Kafka says of topic {topic}: {for_code(code).__name__}")
                found[topic] = next(str(entry[1]) for entry in entries if entry[0] == name)
        return found

    async def declare(self, topics: Iterable[TopicSpec], *, prefix: str = "", replication: int = 1) -> list[str]:
        """Create the topics that do not exist and return their names. An existing topic is left as it is."""
        created = []
        for topic in topics:
            name = prefix + topic.name
            new = NewTopic(name, topic.partitions, replication, topic_configs=topic.config)
            try:
                response = await self._ask("create_topics", [new])
            except TopicAlreadyExistsError:
                continue
            for _topic, code, *message in response.topic_errors:
                if code == TopicAlreadyExistsError.errno:
                    break
                if code:
                    raise Unavailable(f"Kafka did not create topic {name}: {for_code(code).__name__} {message}")
            else:
                created.append(name)
        await self._until_known(created)
        return created

    async def _until_known(self, topics: list[str]) -> None:
        """Wait until the broker's metadata names topics that it has just created."""
        deadline = time.monotonic() + 10
        while topics:
            try:
                await self.partitions(topics)
                await self.time_types(topics)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def add_partitions(self, topic: str, total: int) -> None:
        """Grow a topic to `total` partitions."""
        await self._ask("create_partitions", {topic: NewPartitions(total)})

    async def delete_records(self, before_offsets: Mapping[Partition, int]) -> None:
        """Remove all records before the given offsets, as the retention does."""
        await self._ask(
            "delete_records",
            {TopicPartition(*key): RecordsToDelete(offset) for key, offset in before_offsets.items()},
        )

    async def _ask(self, question: str, *arguments: Any) -> Any:
        if self._client is None:
            raise Unavailable("the admin client is not connected")
        try:
            return await getattr(self._client, question)(*arguments)
        except TopicAlreadyExistsError:
            raise
        except (KafkaError, OSError) as error:
            raise Unavailable(f"Kafka does not answer {question}: {error!r}") from error


def arrival_of(record: Record, watermark: datetime | None) -> datetime:
    """Return when a record arrived: its time as Kafka holds it, made monotone within its partition."""
    stamped = from_epoch_milliseconds(record.timestamp_ms)
    return stamped if watermark is None or stamped > watermark else watermark


async def wait_for_kafka(bootstrap_servers: str, *, deadline_s: float) -> None:
    """Return once the broker answers; raises Unavailable after `deadline_s`."""
    end = time.monotonic() + deadline_s
    while True:
        admin = Admin(bootstrap_servers)
        try:
            await admin.start()
        except Unavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)
        else:
            await admin.stop()
            return
