"""Which runs a backfill adds: the slots of a past range that no run covers yet. A pure function."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.schedule import Slot, next_slot
from services.core.times import floor_to
from services.delivery.model import Version
from services.delivery.planning import MAX_RUNS_AT_ONCE, FilledWindows, PlannedRun, in_force, state_of, tells_of


class Filling(NamedTuple):
    """The runs to add, oldest first; everything before `planned_until` that is kept is covered then."""

    runs: Sequence[PlannedRun]
    planned_until: datetime


def fill(
    wanted: Slot,
    taken: Sequence[Slot],
    versions: Sequence[Version],
    limit: int,
    filled: FilledWindows | None = None,
    kept_from: Mapping[int, datetime] | None = None,
) -> Filling:
    """Return runs for what no slot in `taken` (ascending) covers, at most `limit` that need work.

    A slot that would overlap a run ends, or begins, at that run: no row is exported twice. With `kept_from`, from where
    on rows of each resolution are kept, slots of which rows are missing are left out, each by its own version.
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
            if kept_from is not None and not _is_kept(slot.start, version, kept_from):
                place = slot.end
                continue
            known = filled if tells_of(filled, version) else None
            if limit <= 0 or len(runs) >= MAX_RUNS_AT_ONCE or (known and slot.end > known.until and runs):
                return Filling(runs, place)
            state = state_of(slot, (), known)
            runs.append(PlannedRun(slot, version.version, state))
            limit -= state == "planned"
            place = slot.end
    return Filling(runs, wanted.end)


def first_kept(wanted: Slot, versions: Sequence[Version], kept_from: Mapping[int, datetime]) -> datetime | None:
    """Return from where on a range holds something that is kept, by the versions in force; None: it holds nothing."""
    changes = sorted({version.effective_from for version in versions if wanted.start < version.effective_from})
    for start, end in zip([wanted.start, *changes], [*changes, wanted.end], strict=True):
        version = in_force(versions, start)
        kept = _first_of(version, kept_from)
        if kept is not None and max(start, kept) < min(end, wanted.end):
            return max(start, kept)
    return None


def _is_kept(instant: datetime, version: Version, kept_from: Mapping[int, datetime]) -> bool:
    kept = _first_of(version, kept_from)
    return kept is not None and kept <= instant


def _first_of(version: Version, kept_from: Mapping[int, datetime]) -> datetime | None:
    """Return where the first slot begins that has rows: the platform's first window may lie in the midst of it."""
    kept = kept_from.get(version.resolution_minutes)
    return None if kept is None else floor_to(kept, timedelta(minutes=version.frequency_minutes))


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
