"""What `meterpost windows status` says: how far windows are closed, what they wait for, what was forced. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from services.cli.show import Answer, Column, utc
from services.core.plurals import counted
from services.core.windows import due_until, platform_watermark
from services.ingest.progress_queries import PartitionProgress
from services.platform.kafka import Partition
from services.windowing.forcing import ForceRecord
from services.windowing.held import windows_held
from services.windowing.retention_queries import Retention
from services.windowing.status_queries import ForcedCount, Occupied, Standing

_COLUMNS = (
    Column("Resolution", number=True),
    Column("Closed until", whole=True),
    Column("Can be closed until", whole=True),
    Column("Backlog", number=True),
    Column("Held open", number=True),
    Column("Forced until", whole=True),
    Column("Rows kept", whole=True),
    Column("Dropped before", whole=True),
)
_HOLDERS = (
    Column("Held open by", whole=True),
    Column("Watermark", whole=True),
    Column("Behind", number=True),
    Column("Minutes held", number=True),
    Column("Last moved", whole=True),
    Column("Owner"),
)
_FORCES = (
    Column("Forced", number=True),
    Column("Until", whole=True),
    Column("Without"),
    Column("Windows", number=True),
    Column("With rows", number=True),
    Column("Decided", whole=True),
    Column("By"),
    Column("Reason"),
)
EXPLANATION = (
    "Backlog: windows for which everything is stored and that are not closed yet; it is 0 but for moments. Held open: "
    "windows that the furthest partition would close and that wait for another one. Last moved: wall clock."
)


@dataclass(frozen=True, slots=True)
class ResolutionStatus:
    """One resolution."""

    resolution_minutes: int
    closed_until: datetime
    due_until: datetime | None
    """As far as everything is stored; None: some partition was never heard."""
    backlog_windows: int
    held_windows: int
    forced_until: datetime | None
    retention: Retention | None
    """None: windowing has not looked at it yet."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A partition that holds windows open which another one would close."""

    topic: str
    partition: int
    watermark: datetime | None
    behind_seconds: float | None
    held_windows: int | None
    """Of one minute; None: nothing was ever heard of it, so it holds all."""
    updated_at: datetime | None
    owner: str | None


def resolution_statuses(
    standings: Sequence[Standing],
    watermarks: Mapping[Partition, datetime | None],
    retention: Mapping[int, Retention],
) -> list[ResolutionStatus]:
    """Return each resolution's status."""
    lowest = platform_watermark(watermarks, watermarks)
    highest = max((mark for mark in watermarks.values() if mark is not None), default=None)
    found = []
    for standing in standings:
        step = timedelta(minutes=standing.resolution_minutes)
        closed = standing.closed_until
        due = None if lowest is None else due_until(lowest, standing.resolution_minutes, standing.grace)
        furthest = None if highest is None else due_until(highest, standing.resolution_minutes, standing.grace)
        open_until = max(closed, due or closed)
        found.append(
            ResolutionStatus(
                standing.resolution_minutes,
                closed,
                due,
                (open_until - closed) // step,
                (max(furthest or open_until, open_until) - open_until) // step,
                standing.last_forced_until,
                retention.get(standing.resolution_minutes),
            )
        )
    return found


def holders(
    watermarks: Mapping[Partition, datetime | None],
    progress: Mapping[Partition, PartitionProgress],
    grace: timedelta,
) -> list[Holder]:
    """Return the partitions that hold windows open, those first that hold most."""
    highest = max((mark for mark in watermarks.values() if mark is not None), default=None)
    found = []
    for key, count in windows_held(watermarks, 1, grace).items():
        if count == 0:
            continue
        mark, known = watermarks[key], progress.get(key)
        behind = None if mark is None or highest is None else (highest - mark).total_seconds()
        found.append(
            Holder(*key, mark, behind, count, known.updated_at if known else None, known.owner if known else None)
        )
    return sorted(found, key=lambda one: (one.watermark is not None, one.watermark, one.topic, one.partition))


def show_status(
    answer: Answer,
    resolutions: Sequence[ResolutionStatus],
    held_by: Sequence[Holder],
    forces: Sequence[ForceRecord],
    counts: Mapping[int, ForcedCount],
    watermark: datetime | None,
    occupied: Sequence[Occupied],
) -> None:
    """Answer with tables, or with everything as JSON."""
    if answer.as_json:
        answer.json(
            {
                "watermark": watermark,
                "resolutions": [_resolution_json(one) for one in resolutions],
                "held_open_by": [asdict(one) for one in held_by],
                "occupied": [one._asdict() for one in occupied],
                "forced": [_force_json(one, counts.get(one.force_id)) for one in forces],
            }
        )
        return
    if not resolutions:
        answer.say("No window was ever closed: windows open with the first reading.")
    else:
        answer.table(_COLUMNS, map(_resolution_row, resolutions))
        for sentence in filter(None, [*map(_occupied, occupied), *map(_held_by_job, resolutions)]):
            answer.say(sentence)
    if not resolutions and all(one.watermark is None for one in held_by):
        return  # nothing is wrong with a partition that waits for the first reading like all others
    if held_by:
        answer.table(_HOLDERS, map(_holder_row, held_by))
        answer.say(
            "HELD OPEN: mend the partition above (`meterpost ingest status`). Windows wait, and nothing becomes late "
            "by it. `meterpost windows force-close` closes without it, if that cannot be waited for."
        )
    else:
        answer.say(f"No partition holds windows open. Everything that arrived before {utc(watermark)} is stored.")
    if forces:
        answer.table(_FORCES, [_force_row(one, counts.get(one.force_id)) for one in forces])
    answer.note(EXPLANATION)


def _resolution_json(one: ResolutionStatus) -> dict[str, object]:
    kept = one.retention
    if kept is None:
        return asdict(one)
    days = None if kept.keep is None else kept.keep.days
    retention = {"keep_days": days, **{name: value for name, value in kept._asdict().items() if name != "keep"}}
    return {**asdict(one), "retention": retention}


def _occupied(one: Occupied) -> str:
    whose = "" if one.meter_id is None else f" of meter {one.meter_id}"
    return (
        f"OCCUPIED: the window of {counted(one.resolution_minutes, 'minute')} from {utc(one.window_start)} on is open, "
        f"and {one.in_table} holds something{whose} in it already, which somebody wrote behind the product's back: "
        f"delete it. Where closing has to write the same, bucket {one.bucket} of these windows closes no further than "
        "there before; where not, it stays in the window, and is delivered."
    )


def _held_by_job(one: ResolutionStatus) -> str | None:
    """Return what retention does not drop, and why; None: nothing."""
    kept = one.retention
    if kept is None or kept.held_from is None:
        return None
    rows = f"rows of {counted(one.resolution_minutes, 'minute')} from {utc(kept.held_from)} on"
    held = f"{counted(kept.held_partitions, 'partition')} held"
    return (
        f"KEPT LONGER: {rows} are older than {_days(kept.keep)}, but runs of job {kept.held_by_job_id} still need them "
        f"({held}): deliver them (`meterpost jobs show {kept.held_by_job_id}`; `jobs recover` sends failed ones), give "
        "failed ones up (`runs give-up`), or delete the job."
    )


def _days(keep: timedelta | None) -> str:
    return "for ever" if keep is None else counted(keep.days, "day")


def _resolution_row(one: ResolutionStatus) -> tuple[object, ...]:
    kept = one.retention
    return (
        one.resolution_minutes,
        one.closed_until,
        one.due_until,
        one.backlog_windows,
        one.held_windows,
        one.forced_until,
        None if kept is None else _days(kept.keep),
        None if kept is None else kept.dropped_until,
    )


def _holder_row(one: Holder) -> tuple[object, ...]:
    behind = "never heard" if one.behind_seconds is None else str(timedelta(seconds=round(one.behind_seconds)))
    held = "all" if one.held_windows is None else one.held_windows
    return (f"{one.topic}/{one.partition}", one.watermark, behind, held, one.updated_at, one.owner)


def _force_row(one: ForceRecord, count: ForcedCount | None) -> tuple[object, ...]:
    windows, with_rows = (count.windows, count.windows_with_rows) if count else (0, 0)
    without = ", ".join(one.partitions)
    return (
        one.force_id,
        one.closes_until,
        without,
        windows,
        with_rows,
        one.requested_at,
        one.requested_by,
        one.reason,
    )


def _force_json(one: ForceRecord, count: ForcedCount | None) -> dict[str, object]:
    windows, with_rows = (count.windows, count.windows_with_rows) if count else (0, 0)
    return {**one._asdict(), "windows": windows, "windows_with_rows": with_rows}
