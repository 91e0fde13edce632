"""From polled records to one transaction's worth of rows. No IO: the registry is in memory."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.readings import ReadingVersion, Refusal, RefusalReason
from services.core.registry import Registry
from services.core.uploads import JudgedUpload, Origin, judge_upload
from services.platform.errors import OperatorNeeded
from services.platform.kafka import Partition, PartitionBatch, Record, arrival_of

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
    """Where a partition that this process owns stands in the database."""

    epoch: int
    next_offset: int
    watermark: datetime | None
    first_arrival: datetime | None


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


@dataclass(slots=True)
class Batch:
    """What one transaction stores."""

    versions: list[ReadingVersion] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    advances: list[Advance] = field(default_factory=list)


class _Judged(NamedTuple):
    origin: Origin
    payload: bytes
    upload: JudgedUpload


class BatchBuilder:
    """Judges records and knows which of its verdicts a fresher registry could change."""

    def __init__(self, *, source_topics: dict[str, int], raw_retention: timedelta) -> None:
        self._source_topics = source_topics
        self._raw_retention = raw_retention

    def judge(
        self, polled: PartitionBatch, position: Position, registry: Registry, max_readings: int
    ) -> "JudgedPartition":
        """Judge records of one partition until they hold about `max_readings`.

        Raises OperatorNeeded where the log does not go on at `position`.
        """
        judged: list[_Judged] = []
        watermark, first_arrival = position.watermark, position.first_arrival
        taken = readings = 0
        for record in polled.records:
            _check_offset(polled, record, position.next_offset if taken == 0 else None)
            watermark = arrival_of(record, watermark)
            first_arrival = first_arrival or watermark
            taken += 1
            if record.is_tick:
                continue
            origin = Origin(self._source_topics[polled.topic], polled.partition, record.offset, watermark)
            payload = record.value or b""
            upload = judge_upload(payload, origin, registry, self._raw_retention)
            judged.append(_Judged(origin, payload, upload))
            readings += len(upload.versions) + len(upload.refusals)
            if readings >= max_readings:
                break
        next_offset = polled.records[taken - 1].offset + 1
        after = Position(position.epoch, next_offset, watermark, first_arrival)
        return JudgedPartition(polled, taken, position, after, judged)

    def judge_again(self, partition: "JudgedPartition", registry: Registry) -> None:
        """Judge those records anew that a registry since refreshed may accept."""
        for place, (origin, payload, upload) in enumerate(partition.judged):
            if any(refusal.reason in REGISTRY_REASONS for refusal in upload.refusals):
                again = judge_upload(payload, origin, registry, self._raw_retention)
                partition.judged[place] = _Judged(origin, payload, again)


@dataclass(slots=True)
class JudgedPartition:
    """The verdicts on the first `taken` records of what was polled from one partition."""

    polled: PartitionBatch
    taken: int
    before: Position
    after: Position
    judged: list[_Judged]

    @property
    def key(self) -> Partition:
        """The partition's topic and number."""
        return (self.polled.topic, self.polled.partition)

    @property
    def reading_count(self) -> int:
        """How many readings were judged; a record that is refused as a whole counts as one."""
        return sum(len(item.upload.versions) + len(item.upload.refusals) for item in self.judged)

    @property
    def is_doubted(self) -> bool:
        """Whether a fresher registry could change a verdict."""
        return any(
            refusal.reason in REGISTRY_REASONS
            for _origin, _payload, upload in self.judged
            for refusal in upload.refusals
        )

    @property
    def rest(self) -> PartitionBatch | None:
        """The polled records that were not judged."""
        left = self.polled.records[self.taken :]
        return PartitionBatch(self.polled.topic, self.polled.partition, left) if left else None

    def add_to(self, batch: Batch) -> None:
        """Append the rows to a batch."""
        stored, refused = len(batch.versions), len(batch.rejected)
        for origin, _payload, upload in self.judged:
            batch.versions.extend(upload.versions)
            batch.rejected.extend(_rejected_row(self.polled, origin, refusal) for refusal in upload.refusals)
        batch.advances.append(
            Advance(
                self.polled.topic,
                self.polled.partition,
                self.before.epoch,
                self.before.next_offset,
                self.after,
                len(batch.versions) - stored,
                len(batch.rejected) - refused,
            )
        )


def _rejected_row(polled: PartitionBatch, origin: Origin, refusal: Refusal) -> RejectedRow:
    return RejectedRow(
        polled.topic,
        polled.partition,
        origin.offset,
        refusal.place,
        origin.arrived_at,
        refusal.reason.value,
        refusal.detail,
        refusal.device_id,
        refusal.original,
    )


def _check_offset(polled: PartitionBatch, record: Record, expected: int | None) -> None:
    """Refuse to go back. A gap forward is judged by the loop, which can ask the broker why."""
    if expected is not None and record.offset < expected:
        raise OperatorNeeded(
            f"{polled.topic}/{polled.partition}: the broker delivers offset {record.offset}, but everything before "
            f"{expected} is stored: the topic was recreated or has lost records. Nothing was stored from it. "
            f"Restore the topic, or declare a new one and point ingest at it."
        )
