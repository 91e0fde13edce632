"""What `meterpost ingest status` says: the database's progress beside the broker's log. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from services.cli.show import Answer, Column, utc
from services.ingest.progress_queries import Allowance, Gap, PartitionProgress
from services.platform.kafka import Partition
from services.platform.kafka_ends import PartitionEnd

_COLUMNS = (
    Column("Partition", whole=True),
    Column("Position", number=True),
    Column("End", number=True),
    Column("Lag", number=True),
    Column("Lag, time", number=True),
    Column("Watermark", whole=True),
    Column("Stored", number=True),
    Column("Refused", number=True),
    Column("Gaps", number=True),
    Column("Owner (epoch)"),
    Column("Updated", whole=True),
)
EXPLANATION = (
    "Position: the next offset to store. Lag: records from there to the log's end. Lag, time: by the arrival clock, "
    "how much later the log's newest record arrived than the last stored one (the watermark); it stands still with "
    "the topic. Gaps: records that the broker removed before they were read, accepted by an operator."
)


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition; `state` tells which of the fields there are."""

    topic: str
    partition: int
    state: str
    """read; new: nobody has claimed it yet; gone: the broker does not know it; gap: records are missing."""
    position: int | None = None
    first_offset: int | None = None
    end_offset: int | None = None
    lag_records: int | None = None
    lag_seconds: float | None = None
    watermark: datetime | None = None
    owner: str | None = None
    epoch: int | None = None
    stored_count: int = 0
    refused_count: int = 0
    recent_stored: int = 0
    recent_refused: int = 0
    accepted_gap_records: int = 0
    updated_at: datetime | None = None


def partition_statuses(
    ends: Mapping[Partition, PartitionEnd], progress: Mapping[Partition, PartitionProgress], gaps: Sequence[Gap]
) -> list[PartitionStatus]:
    """Return every partition that the broker or the database knows, in order."""
    return [
        _status(key, ends.get(key), progress.get(key), [gap for gap in gaps if (gap.topic, gap.partition) == key])
        for key in sorted(ends.keys() | progress.keys())
    ]


def _status(
    key: Partition, end: PartitionEnd | None, progress: PartitionProgress | None, gaps: Sequence[Gap]
) -> PartitionStatus:
    if progress is None:
        assert end is not None  # noqa: S101 - one of the two named the partition
        held = end.end_offset - end.first_offset
        return PartitionStatus(*key, "new", None, end.first_offset, end.end_offset, held)
    known: dict[str, Any] = {
        "position": progress.next_offset,
        "watermark": progress.watermark,
        "owner": progress.owner,
        "epoch": progress.epoch,
        "stored_count": progress.stored_count,
        "refused_count": progress.refused_count,
        "recent_stored": progress.recent_stored,
        "recent_refused": progress.recent_refused,
        "accepted_gap_records": sum(gap.records for gap in gaps if gap.accepted_at is not None),
        "updated_at": progress.updated_at,
    }
    if end is None:
        return PartitionStatus(*key, "gone", **known)
    is_gap = progress.next_offset < end.first_offset
    return PartitionStatus(
        *key,
        "gap" if is_gap else "read",
        first_offset=end.first_offset,
        end_offset=end.end_offset,
        lag_records=end.end_offset - max(progress.next_offset, end.first_offset),
        lag_seconds=_lag_seconds(end, progress),
        **known,
    )


def _lag_seconds(end: PartitionEnd, progress: PartitionProgress) -> float | None:
    if progress.next_offset >= end.end_offset:
        return 0.0
    if end.newest_time is None or progress.watermark is None:
        return None
    return max(0.0, (end.newest_time - progress.watermark).total_seconds())


def totals(statuses: Sequence[PartitionStatus]) -> dict[str, Any]:
    """Return the sums, the longest lag and the watermark that windows wait for."""
    watermarks = [status.watermark for status in statuses if status.state != "gone"]
    known = [watermark for watermark in watermarks if watermark is not None]
    return {
        "partitions": len(statuses),
        "lag_records": sum(status.lag_records or 0 for status in statuses),
        "lag_seconds": max((status.lag_seconds for status in statuses if status.lag_seconds is not None), default=None),
        "watermark": min(known) if known and len(known) == len(watermarks) else None,
        "stored_count": sum(status.stored_count for status in statuses),
        "refused_count": sum(status.refused_count for status in statuses),
        "accepted_gap_records": sum(status.accepted_gap_records for status in statuses),
    }


def show_status(
    answer: Answer, statuses: Sequence[PartitionStatus], gaps: Sequence[Gap], allowances: Sequence[Allowance]
) -> None:
    """Answer with a table, or with everything as JSON."""
    sums = totals(statuses)
    if answer.as_json:
        answer.json(
            {
                "partitions": [asdict(status) for status in statuses],
                "totals": sums,
                "gaps": [gap._asdict() for gap in gaps],
                "refusals_allowed": [allowance._asdict() for allowance in allowances],
            }
        )
        return
    answer.table(_COLUMNS, [*map(_row, statuses), _total_row(sums)])
    for gap in gaps:
        if gap.accepted_at is None:
            where = f"{gap.topic}/{gap.partition}"
            answer.say(
                f"GAP in {where}: records {gap.from_offset:,} to {gap.to_offset - 1:,} were removed before they were "
                f"read. Every process of ingest that is given this partition ends, so in the end nothing is read at "
                f"all, until `meterpost ingest accept-gap {where} --reason TEXT`."
            )
    for topic, stored, refused in _recent(statuses):
        if refused > stored:
            share = refused * 100 // (stored + refused)
            answer.say(f"REFUSED of {topic} lately: {share} % of {stored + refused:,} readings.")
    for allowance in allowances:
        answer.say(
            f"Refusals of {allowance.topic} are no reason to stop until {utc(allowance.allowed_until)}, says "
            f"{allowance.allowed_by}: {allowance.reason}"
        )
    answer.note(EXPLANATION)


def _row(status: PartitionStatus) -> tuple[object, ...]:
    notes = {"new": "not claimed yet", "gone": "not on the broker", "gap": "", "read": ""}
    owner = notes[status.state] or f"{status.owner} ({status.epoch})"
    return (
        f"{status.topic}/{status.partition}",
        status.position,
        status.end_offset,
        status.lag_records,
        _duration(status.lag_seconds),
        status.watermark,
        status.stored_count,
        status.refused_count,
        status.accepted_gap_records,
        owner,
        status.updated_at,
    )


def _total_row(sums: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        f"{sums['partitions']} partitions",
        "",
        "",
        sums["lag_records"],
        _duration(sums["lag_seconds"]),
        sums["watermark"],
        sums["stored_count"],
        sums["refused_count"],
        sums["accepted_gap_records"],
        "",
        "",
    )


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else str(timedelta(seconds=round(seconds)))


def _recent(statuses: Sequence[PartitionStatus]) -> list[tuple[str, int, int]]:
    return [
        (
            topic,
            sum(status.recent_stored for status in statuses if status.topic == topic),
            sum(status.recent_refused for status in statuses if status.topic == topic),
        )
        for topic in sorted({status.topic for status in statuses})
    ]
