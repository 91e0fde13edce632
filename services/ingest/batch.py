"""From polled records to one transaction's worth of rows. No IO: the registry is in memory."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.columns import ColumnJudge, Columns, JudgedColumns, PlainTimes
from services.core.readings import WHOLE_RECORD, Refusal, RefusalReason
from services.core.registry import Registry
from services.core.uploads import Origin
from services.ingest.refusal_guard import NONE_RECENT, Recent
from services.platform.crash_points import DEADLY, crash_on
from services.platform.errors import OperatorNeeded
from services.platform.kafka import Partition, PartitionBatch, Record, arrival_of

DEADLY_DETAIL = "set aside unread: it ended the process that judged it, and three more that only tried to"
RECORDS_AT_ONCE = 64
"""Less than a millisecond's work."""
REGISTRY_REASONS = frozenset(
    {
        RefusalReason.UNKNOWN_DEVICE,
        RefusalReason.UNKNOWN_INPUT,
        RefusalReason.UNKNOWN_METER,
        RefusalReason.NOT_ATTACHED,
    }
)
"""Refusals that a registry a second older than the truth may be wrong about."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a partition that this process owns stands."""

    epoch: int
    next_offset: int
    watermark: datetime | None
    first_arrival: datetime | None
    recent: Recent = NONE_RECENT
    crash_count: int = 0
    """How many owners in a row vanished here without storing anything."""


class Advance(NamedTuple):
    """How far one batch moves a partition."""

    topic: str
    partition: int
    epoch: int
    from_offset: int
    position: Position
    stored: int
    refused: int


class RejectedRow(NamedTuple):
    """A refusal, in the column order of `rejected_reading`."""

    topic: str
    partition: int
    source_offset: int
    source_place: int
    arrived_at: datetime
    reason: str
    detail: str
    device_id: str | None
    original: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction stores."""

    versions: Columns
    rejected: list[RejectedRow] = field(default_factory=list)
    advances: list[Advance] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class JudgedPartition:
    """The verdicts on records of one partition."""

    polled: PartitionBatch
    before: Position
    after: Position
    verdicts: JudgedColumns
    deadly: frozenset[int] = frozenset()

    @property
    def key(self) -> Partition:
        """The partition's topic and number."""
        return (self.polled.topic, self.polled.partition)

    @property
    def is_doubted(self) -> bool:
        """Whether a fresher registry could change a verdict."""
        return any(refusal.reason in REGISTRY_REASONS for _origin, refusal in self.verdicts.refusals)


class BatchBuilder:
    """Judges records, partition by partition, and puts the verdicts together."""

    def __init__(self, *, source_topics: dict[str, int], raw_retention: timedelta, recent_readings: int) -> None:
        """`recent_readings`: how many readings of each partition the share of the refused is taken of."""
        self._source_topics = source_topics
        self._recent_readings = recent_readings
        self._raw_retention = raw_retention
        self._times = PlainTimes()

    async def judge(
        self, polled: PartitionBatch, position: Position, registry: Registry, deadly: frozenset[int] = frozenset()
    ) -> JudgedPartition:
        """Judge records of one partition. Raises OperatorNeeded where the log goes back behind `position`.

        `deadly`: offsets of records that are refused without a look, because looking kills.
        Waits for nothing, but lets others run every now and then: meanwhile the batch before is being written.
        """
        judge = ColumnJudge(registry, self._raw_retention, self._times)
        source_topic = self._source_topics[polled.topic]
        watermark, first_arrival = position.watermark, position.first_arrival
        set_aside: list[tuple[Origin, Refusal]] = []
        latest_ms: int | None = None  # what is not later leaves the watermark where it is
        _check_offset(polled, polled.records[0], position.next_offset)
        for number, record in enumerate(polled.records):
            if number % RECORDS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if watermark is None or latest_ms is None or record.timestamp_ms > latest_ms:
                watermark, latest_ms = arrival_of(record, watermark), record.timestamp_ms
            first_arrival = first_arrival or watermark
            if record.is_tick:
                continue
            payload = record.value or b""
            origin = Origin(source_topic, polled.partition, record.offset, watermark)
            if record.offset in deadly:
                set_aside.append((origin, Refusal(WHOLE_RECORD, RefusalReason.MALFORMED, DEADLY_DETAIL, None, payload)))
                continue
            if DEADLY:
                crash_on(payload)
            judge.add(payload, origin)
        verdicts = judge.finish()
        verdicts.refusals.extend(set_aside)
        recent = position.recent.then(len(verdicts.versions), len(verdicts.refusals), self._recent_readings)
        after = Position(position.epoch, polled.records[-1].offset + 1, watermark, first_arrival, recent)
        return JudgedPartition(polled, position, after, verdicts, deadly)

    async def judge_again(self, judged: JudgedPartition, registry: Registry) -> JudgedPartition:
        """Judge the same records by a registry that has been refreshed since."""
        return await self.judge(judged.polled, judged.before, registry, judged.deadly)


def batch_of(partitions: list[JudgedPartition]) -> Batch:
    """Return what one transaction stores of several partitions."""
    batch = Batch(Columns.joined([partition.verdicts.versions for partition in partitions]))
    for partition in partitions:
        topic, number = partition.key
        verdicts = partition.verdicts
        batch.rejected.extend(
            RejectedRow(topic, number, origin.offset, refusal.place, origin.arrived_at, *_words(refusal))
            for origin, refusal in verdicts.refusals
        )
        before, counts = partition.before, (len(verdicts.versions), len(verdicts.refusals))
        batch.advances.append(Advance(topic, number, before.epoch, before.next_offset, partition.after, *counts))
    return batch


def describe_refusals(partitions: list[JudgedPartition]) -> str:
    """Return what was refused how often, and the first in full, for people."""
    refusals = [refusal for partition in partitions for _origin, refusal in partition.verdicts.refusals]
    if not refusals:
        return "none of them in this batch"
    counts = Counter(refusal.reason.value for refusal in refusals).most_common()
    return f"{', '.join(f'{count:,} {reason}' for reason, count in counts)} in this batch, first: {refusals[0].detail}"


def _words(refusal: Refusal) -> tuple[str, str, str | None, bytes]:
    # PostgreSQL's text cannot hold a zero byte; the original can.
    detail = refusal.detail.replace("\0", "\N{SYMBOL FOR NULL}")
    device_id = None if refusal.device_id is None else refusal.device_id.replace("\0", "\N{SYMBOL FOR NULL}")
    return refusal.reason.value, detail, device_id, refusal.original


def _check_offset(polled: PartitionBatch, record: Record, expected: int) -> None:
    """Refuse to go back. A gap forward is judged by the loop, which can ask the broker why."""
    if record.offset < expected:
        raise OperatorNeeded(
            f"{polled.topic}/{polled.partition}: the broker delivers offset {record.offset}, but everything before "
            f"{expected} is stored: the topic was recreated or has lost records. Nothing was stored from it. "
            f"Restore the topic, or declare topics under a new prefix with a new database."
        )
