"""Slots of export jobs: which pairs of frequency and resolution exist, and which slot comes when."""

from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.times import ceil_to, floor_to

FREQUENCY_NAMES = {"day": 1440, "hour": 60, "15min": 15, "5min": 5}
"""Minutes of each export frequency, by the name that people use."""

ALLOWED_RESOLUTIONS_MINUTES: dict[int, tuple[int, ...]] = {
    1440: (15, 60),
    60: (5, 15, 60),
    15: (1, 5, 15),
    5: (1, 5),
}
"""Resolutions in minutes for each frequency in minutes; source: the export's frequency and resolution table."""


class Slot(NamedTuple):
    """The period that one run covers: windows that start at or after `start` and before `end`."""

    start: datetime
    end: datetime


def frequency_name(frequency_minutes: int) -> str:
    """Return the name people use for a frequency."""
    return next(name for name, minutes in FREQUENCY_NAMES.items() if minutes == frequency_minutes)


def check_pair(frequency_minutes: int, resolution_minutes: int) -> None:
    """Raise ValueError, naming what is allowed, unless the pair is one of the ten legal ones."""
    allowed = ALLOWED_RESOLUTIONS_MINUTES.get(frequency_minutes)
    if allowed is None:
        names = ", ".join(FREQUENCY_NAMES)
        raise ValueError(f"no export frequency has {frequency_minutes} minutes; allowed: {names}")
    if resolution_minutes not in allowed:
        name = frequency_name(frequency_minutes)
        choices = ", ".join(f"{minutes}" for minutes in allowed)
        raise ValueError(
            f"a resolution of {resolution_minutes} min does not go with the frequency {name}; "
            f"allowed resolutions in minutes: {choices}"
        )


def slot_at(instant: datetime, frequency_minutes: int) -> Slot:
    """Return the slot, aligned to UTC, that contains `instant`."""
    length = timedelta(minutes=frequency_minutes)
    start = floor_to(instant, length)
    return Slot(start, start + length)


def first_slot(starts_at: datetime, frequency_minutes: int) -> Slot:
    """Return the first slot that begins at or after `starts_at`."""
    return slot_at(ceil_to(starts_at, timedelta(minutes=frequency_minutes)), frequency_minutes)


def next_slot(planned_until: datetime, frequency_minutes: int, resolution_minutes: int) -> Slot:
    """Return the slot that follows when everything before `planned_until` has been planned.

    It ends on the grid of the frequency. It begins where the last one ended, so that a job whose frequency was changed
    in the middle of a longer slot loses nothing (that one slot is shorter), or else at the next window of its
    resolution.
    """
    start = ceil_to(planned_until, timedelta(minutes=resolution_minutes))
    return Slot(start, slot_at(start, frequency_minutes).end)


def is_due(slot: Slot, closed_until: datetime | None) -> bool:
    """Tell whether every window that starts in the slot is closed."""
    return closed_until is not None and slot.end <= closed_until
