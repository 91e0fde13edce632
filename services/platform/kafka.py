"""The module that fences aiokafka (with the others named `kafka_…`): safe settings once, and a typed surface.

aiokafka's defaults are unsafe for us (it commits by itself and starts at the end); here nothing is committed unless
asked, reading starts at the earliest record, and the producer is idempotent with acks=all.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
)

from services.core.times import from_epoch_milliseconds, to_epoch_milliseconds
from services.platform.errors import MeterpostError, Unavailable
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_refusal import refusal, start_client

TICK_HEADER = ("kind", b"tick")
MAX_FETCH_BYTES = 8 * 1024 * 1024
SESSION_TIMEOUT_MS = 10_000
# A consumer that waits for PostgreSQL keeps its membership: only silence (the session) ends it, not slowness.
MAX_POLL_INTERVAL_MS = 24 * 3_600_000

START_SECONDS = 60
ANSWER_SECONDS = 30
ACKNOWLEDGED_SECONDS = 60
POLL_GRACE_SECONDS = 5
# Later than any reading, and early enough that a grace or a tolerance can be added.
LATEST_ARRIVAL_MS = 32_503_680_000_000
# After these an idempotent producer of this client never gets a record through again.
_FATAL_TO_A_PRODUCER = (
    OutOfOrderSequenceNumber,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    ProducerFenced,
    TopicAuthorizationFailedError,
)

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

    def __init__(
        self,
        access: KafkaAccess,
        *,
        group: str,
        topics: Iterable[str],
        client: str,
        session_timeout_ms: int = SESSION_TIMEOUT_MS,
    ) -> None:
        """`session_timeout_ms`: a member that is silent for so long loses its partitions to the others."""
        self._topics = tuple(topics)
        self._assignment = _Assignment()
        self._access = access
        self._settings = {
            **access.client_settings(),
            "group_id": group,
            "client_id": client,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "session_timeout_ms": session_timeout_ms,
            "heartbeat_interval_ms": session_timeout_ms // 4,
            "max_poll_interval_ms": MAX_POLL_INTERVAL_MS,
            "max_partition_fetch_bytes": MAX_FETCH_BYTES,
            "metadata_max_age_ms": 5_000,
            "retry_backoff_ms": 250,
        }
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect and join the group.

        Raises Unavailable where no broker answers; it may then be called again. Raises KafkaRefusedError where they
        refuse us.
        """
        # Made anew for each try: a client that failed to start can be neither started nor stopped again.
        consumer = AIOKafkaConsumer(**self._settings)
        consumer.subscribe(self._topics, listener=self._assignment)
        await start_client(self._access, consumer.start, lambda: _close(consumer, "consumer"), deadline_s=START_SECONDS)
        self._consumer = consumer

    async def stop(self) -> None:
        """Leave the group and close; never raises."""
        if self._consumer is not None:
            await _close(self._consumer, "consumer")

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

    async def poll(
        self, partitions: Iterable[Partition] = (), *, timeout_ms: int, max_records: int | None = None
    ) -> list[PartitionBatch]:
        """Return what has been fetched, waiting at most `timeout_ms` for something; empty while Kafka is away.

        Without `partitions`, of everything that is assigned.
        """
        # Of what is not assigned (any more) nothing can be had; asking for it is an error.
        wanted = [TopicPartition(*key) for key in partitions if key in self.assigned]
        try:
            # While the group is being rearranged the client waits without a limit of its own.
            async with asyncio.timeout(timeout_ms / 1000 + POLL_GRACE_SECONDS):
                fetched = await self._consumer.getmany(*wanted, timeout_ms=timeout_ms, max_records=max_records)
        except TimeoutError:
            return []
        except KafkaError as error:
            if not error.retriable:
                raise MeterpostError(f"Kafka refuses to deliver records: {error!r}") from error
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
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await ask(wanted)
        except (KafkaError, OSError, TimeoutError) as error:
            raise Unavailable(f"Kafka does not tell offsets: {error!r}") from error
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def highwater(self, partition: Partition) -> int | None:
        """Return the end of the partition as the last fetch saw it; None before the first, or if it is not ours now."""
        if partition not in self.assigned:
            return None
        offset: int | None = self._consumer.highwater(TopicPartition(*partition))
        return offset

    async def has_fetched_all(self, partition: Partition) -> bool:
        """Tell whether the partition was read to the end that the last fetch saw.

        What no reader is handed, the marks of a publisher's transactions, counts as read.
        """
        end = self.highwater(partition)
        return end is not None and await self._consumer.position(TopicPartition(*partition)) >= end

    async def answers(self) -> bool:
        """Tell whether a broker answers now; that they refuse us, as after a change of the password, is logged."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if await self._consumer._client.force_metadata_update():  # noqa: SLF001 - it has no public way
                    return True
        except (KafkaError, OSError, TimeoutError):
            pass
        reason = await refusal(self._access)
        if reason is not None:
            log.error("kafka_refuses", error=reason)
        return False

    async def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Commit to Kafka; a hint for lag tools only, so a failure is logged and forgotten."""
        if not next_offsets:
            return
        try:
            async with asyncio.timeout(2):
                await self._consumer.commit({TopicPartition(*p): offset for p, offset in next_offsets.items()})
        except (KafkaError, OSError, TimeoutError) as error:
            log.info("hint_not_committed", error=repr(error))


async def _close(client: Any, what: str) -> None:
    try:
        async with asyncio.timeout(5):
            await client.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("client_closed_badly", client=what, error=repr(error))


class Producer:
    """Publishes idempotently with acks=all."""

    def __init__(self, access: KafkaAccess, *, client: str) -> None:
        self._access = access
        self._settings = {
            **access.client_settings(),
            "client_id": client,
            "enable_idempotence": True,
            "acks": "all",
            "linger_ms": 5,
            "max_request_size": 4 * 1024 * 1024,
            "metadata_max_age_ms": 5_000,
            "retry_backoff_ms": 250,
        }
        self._producer: Any = None
        self._broken: BaseException | None = None

    async def start(self) -> None:
        """Connect. Raises Unavailable where no broker answers (it may be called again), KafkaRefusedError."""
        producer = AIOKafkaProducer(**self._settings)
        await start_client(self._access, producer.start, lambda: _close(producer, "producer"), deadline_s=START_SECONDS)
        self._producer = producer

    async def stop(self) -> None:
        """Send what waits and close; never raises."""
        if self._producer is not None:
            await _close(self._producer, "producer")

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

        `created_at` is the record's time on a topic with CreateTime; without it, now. Raises Unavailable where waiting
        may help, and MeterpostError for ever after a failure that this producer cannot get over: its process must end.
        """
        if self._broken is not None:
            raise MeterpostError(f"Kafka refuses what this process publishes: {self._broken!r}")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                future: asyncio.Future[Any] = await self._producer.send(
                    topic,
                    value,
                    key=b"tick" if is_tick else key,  # the client refuses a record with neither key nor value
                    partition=partition,
                    timestamp_ms=None if created_at is None else to_epoch_milliseconds(created_at),
                    headers=[TICK_HEADER] if is_tick else None,
                )
        except (KafkaError, OSError, TimeoutError) as error:
            if isinstance(error, KafkaError) and not error.retriable:
                raise MeterpostError(f"Kafka refuses a record for {topic}: {error!r}") from error
            raise Unavailable(f"Kafka does not take records: {error!r}") from error
        # Nobody may be waiting for this one; a failure for good must be noticed all the same.
        future.add_done_callback(self._look_at)
        return future

    def _look_at(self, future: "asyncio.Future[Any]") -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None and not getattr(error, "retriable", True) and self._broken is None:
            log.error("record_refused", error=repr(error))
            if isinstance(error, _FATAL_TO_A_PRODUCER):
                self._broken = error

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None = None) -> None:
        """Publish one record and wait for its acknowledgement. Raises Unavailable."""
        await acknowledged([await self.enqueue(topic, value, key=key)])


async def acknowledged(futures: Iterable["asyncio.Future[Any]"]) -> None:
    """Wait until every record is stored by the broker. Raises Unavailable where one is not."""
    try:
        async with asyncio.timeout(ACKNOWLEDGED_SECONDS):
            await asyncio.gather(*futures)
    except (KafkaError, OSError, TimeoutError) as error:
        raise Unavailable(f"Kafka did not store a record: {error!r}") from error


def stamped_at(timestamp_ms: int) -> datetime:
    """Return the time of a record as Kafka holds it.

    A publisher with a mad clock (CreateTime) can name any time that has 64 bits, and none at all (-1): those before
    1970 count as its beginning, those beyond the year 3000 as that.
    """
    return from_epoch_milliseconds(min(max(timestamp_ms, 0), LATEST_ARRIVAL_MS))


def arrival_of(record: Record, watermark: datetime | None) -> datetime:
    """Return when a record arrived: its time as Kafka holds it, made monotone within its partition."""
    stamped = stamped_at(record.timestamp_ms)
    return stamped if watermark is None or stamped > watermark else watermark
