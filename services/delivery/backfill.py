"""Which runs a backfill adds: the slots of a past range that no run covers yet. A pure function."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from services.core.schedule import Slot, next_slot
from services.delivery.model import Version
from services.delivery.planning import MAX_RUNS_AT_ONCE, FilledWindows, PlannedRun, in_force, state_of, tells_of


class Filling(NamedTuple):
    """The runs to add, oldest first; everything before `planned_until` is covered then."""

    runs: Sequence[PlannedRun]
    planned_until: datetime


def fill(
    wanted: Slot,
    taken: Sequence[Slot],
    versions: Sequence[Version],
    limit: int,
    filled: FilledWindows | None = None,
) -> Filling:
    """Return runs for what no slot in `taken` (ascending) covers, at most `limit` that need work.

    A slot that would overlap a run ends, or begins, at that run: no row is exported twice.
    """
    runs: list[PlannedRun] = []
    place = wanted.start
    for gap in _gaps(wanted, taken):
        place = max(place, gap.start)
        while place < gap.end:
            version = in_force(versions, place)
            slot = next_slot(place, version.frequency_minutes, version.resolution_minutes)
            slot = Slot(slot.start, min(slot.end, gap.end))
            if slot.start >= slot.end:
                break
            known = filled if tells_of(filled, version) else None
            if limit <= 0 or len(runs) >= MAX_RUNS_AT_ONCE or (known and slot.end > known.until and runs):
                return Filling(runs, place)
            state = state_of(slot, (), known)
            runs.append(PlannedRun(slot, version.version, state))
            limit -= state == "planned"
            place = slot.end
    return Filling(runs, wanted.end)


def _gaps(wanted: Slot, taken: Sequence[Slot]) -> list[Slot]:
    gaps = []
    place = wanted.start
    for slot in taken:
        if place < slot.start:
            gaps.append(Slot(place, min(slot.start, wanted.end)))
        place = max(place, slot.end)
    if place < wanted.end:
        gaps.append(Slot(place, wanted.end))
    return gaps
