"""Which runs of a job are due: a pure function of its versions, its pauses and the closed windows."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from services.core.schedule import Slot, first_slot, is_due, next_slot
from services.core.times import floor_to
from services.delivery.model import MEASUREMENTS, Pause, Version

MAX_RUNS_AT_ONCE = 10_000
"""Of which most need no work: they are skipped or known to be empty."""

PlannedState = Literal["planned", "empty", "skipped"]


class PlannedRun(NamedTuple):
    """A run that became due; only a planned one is still to be worked on."""

    slot: Slot
    version: int
    state: PlannedState


class FilledWindows(NamedTuple):
    """The windows of one resolution in which a job's organization has rows: all of them that start before `until`."""

    resolution_minutes: int
    starts: Sequence[datetime]
    """Ascending, from the job's next slot on."""
    until: datetime


class Plan(NamedTuple):
    """The runs to add, oldest first, and the slot that comes after them, with the version in force for it."""

    runs: Sequence[PlannedRun]
    next_slot: Slot
    next_version: Version
    is_next_due: bool
    """More is due than was planned at once."""


def in_force(versions: Sequence[Version], instant: datetime) -> Version:
    """Return the version for slots that begin at `instant`; before the first one begins, the first."""
    begun = [version for version in versions if version.effective_from <= instant]
    return max(begun) if begun else min(versions)


def first_plan(starts_at: datetime, opened_at: Mapping[int, datetime], versions: Sequence[Version]) -> Plan | None:
    """Return the first slot of a new job, without runs; None while no window of its resolution was ever closed.

    Slots before the platform's first window are left out, as empty by definition, and so are those whose rows were
    dropped by retention.
    """
    version = in_force(versions, starts_at)
    opening = opened_at.get(version.resolution_minutes)
    if opening is None:
        return None
    begin = floor_to(opening, timedelta(minutes=version.frequency_minutes))
    is_catalog = version.data != MEASUREMENTS
    slot = first_slot(max(starts_at, begin), version.frequency_minutes, is_catalog=is_catalog)
    return plan(slot.start, versions, (), {}, limit=0)


def plan(
    planned_until: datetime,
    versions: Sequence[Version],
    pauses: Sequence[Pause],
    closed_until: Mapping[int, datetime],
    limit: int,
    filled: FilledWindows | None = None,
) -> Plan:
    """Return the due runs of the slots from `planned_until` on, oldest first, at most `limit` that need work.

    With `filled`, runs that would turn out to be empty are so at once, and the plan ends where that knowledge ends.
    """
    runs: list[PlannedRun] = []
    while True:
        version = in_force(versions, planned_until)
        slot = next_slot(planned_until, version.frequency_minutes, version.resolution_minutes)
        due = is_due(slot, closed_until.get(version.resolution_minutes))
        known = filled if tells_of(filled, version) else None
        is_enough = limit <= 0 or len(runs) >= MAX_RUNS_AT_ONCE or (known and slot.end > known.until and runs)
        if is_enough or not due:
            return Plan(runs, slot, version, due)
        state = state_of(slot, pauses, known)
        runs.append(PlannedRun(slot, version.version, state))
        limit -= state == "planned"
        planned_until = slot.end


def tells_of(filled: FilledWindows | None, version: Version) -> bool:
    """Tell whether these windows say which runs of the version are empty."""
    if filled is None:
        return False
    return version.data == MEASUREMENTS and version.resolution_minutes == filled.resolution_minutes


def state_of(slot: Slot, pauses: Sequence[Pause], filled: FilledWindows | None) -> PlannedState:
    """Return how the run of a slot begins: skipped in a pause, empty where no row is known to be in it."""
    if is_paused(slot.start, pauses):
        return "skipped"
    if filled is None or slot.end > filled.until:
        return "planned"
    place = bisect_left(filled.starts, slot.start)
    has_rows = place < len(filled.starts) and filled.starts[place] < slot.end
    return "planned" if has_rows else "empty"


def is_paused(instant: datetime, pauses: Sequence[Pause]) -> bool:
    """Tell whether `instant` lies inside a pause."""
    return any(
        pause.paused_from <= instant and (pause.resumed_from is None or instant < pause.resumed_from)
        for pause in pauses
    )
