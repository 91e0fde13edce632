"""Which runs of a job are due: a pure function of its versions, its pauses and the closed windows."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.schedule import Slot, first_slot, is_due, next_slot
from services.core.times import floor_to
from services.delivery.model import Pause, Version


class PlannedRun(NamedTuple):
    """A run that became due."""

    slot: Slot
    version: int
    is_skipped: bool


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

    Slots before the platform's first window are left out: they are empty by definition.
    """
    version = in_force(versions, starts_at)
    opening = opened_at.get(version.resolution_minutes)
    if opening is None:
        return None
    begin = floor_to(opening, timedelta(minutes=version.frequency_minutes))
    slot = first_slot(max(starts_at, begin), version.frequency_minutes)
    return plan(slot.start, versions, (), {}, limit=0)


def plan(
    planned_until: datetime,
    versions: Sequence[Version],
    pauses: Sequence[Pause],
    closed_until: Mapping[int, datetime],
    limit: int,
) -> Plan:
    """Return the due runs of the slots from `planned_until` on, oldest first, at most `limit`."""
    runs: list[PlannedRun] = []
    while True:
        version = in_force(versions, planned_until)
        slot = next_slot(planned_until, version.frequency_minutes, version.resolution_minutes)
        due = is_due(slot, closed_until.get(version.resolution_minutes))
        if len(runs) >= limit or not due:
            return Plan(runs, slot, version, due)
        runs.append(PlannedRun(slot, version.version, is_paused(slot.start, pauses)))
        planned_until = slot.end


def is_paused(instant: datetime, pauses: Sequence[Pause]) -> bool:
    """Tell whether `instant` lies inside a pause."""
    return any(
        pause.paused_from <= instant and (pause.resumed_from is None or instant < pause.resumed_from)
        for pause in pauses
    )
