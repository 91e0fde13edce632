"""Slots of export jobs: which pairs of frequency and resolution exist, and which slot comes when."""

from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.catalog_records import CATALOG
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

NO_RESOLUTION = 0
"""The resolution of a catalog job: it has none, and is not bound to windows."""
CATALOG_FREQUENCY_MINUTES = 1440


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
        if resolution_minutes == NO_RESOLUTION:
            raise ValueError(f"measurements need a resolution; allowed in minutes with the frequency {name}: {choices}")
        raise ValueError(
            f"a resolution of {resolution_minutes} min does not go with the frequency {name}; "
            f"allowed resolutions in minutes: {choices}"
        )


def check_catalog(frequency_minutes: int, resolution_minutes: int | None) -> None:
    """Raise ValueError, naming what is allowed, unless a catalog job may have this: daily, without a resolution."""
    if frequency_minutes != CATALOG_FREQUENCY_MINUTES:
        name = frequency_name(CATALOG_FREQUENCY_MINUTES)
        raise ValueError(f"a catalog is exported once a day; allowed frequency: {name}")
    if resolution_minutes:
        raise ValueError("a catalog has no windows and so no resolution; leave the resolution out")


def check_schedule(data: str, frequency_minutes: int, resolution_minutes: int | None) -> None:
    """Raise ValueError, naming what is allowed, unless a job with this data may have this."""
    if data == CATALOG:
        check_catalog(frequency_minutes, resolution_minutes)
    else:
        check_pair(frequency_minutes, resolution_minutes or NO_RESOLUTION)


def slot_at(instant: datetime, frequency_minutes: int) -> Slot:
    """Return the slot, aligned to UTC, that contains `instant`."""
    length = timedelta(minutes=frequency_minutes)
    start = floor_to(instant, length)
    return Slot(start, start + length)


def first_slot(starts_at: datetime, frequency_minutes: int, *, is_catalog: bool = False) -> Slot:
    """Return the first slot that begins at or after `starts_at`; of a catalog the one around it."""
    if is_catalog:
        return slot_at(starts_at, frequency_minutes)
    return slot_at(ceil_to(starts_at, timedelta(minutes=frequency_minutes)), frequency_minutes)


def next_slot(planned_until: datetime, frequency_minutes: int, resolution_minutes: int) -> Slot:
    """Return the slot that follows when everything before `planned_until` has been planned.

    It ends on the grid of the frequency. It begins where the last one ended, so that a job whose frequency was changed
    in the middle of a longer slot loses nothing (that one slot is shorter), or else at the next window of its
    resolution, or minute where there is no resolution.
    """
    start = ceil_to(planned_until, step_of(resolution_minutes))
    return Slot(start, slot_at(start, frequency_minutes).end)


def step_of(resolution_minutes: int) -> timedelta:
    """Return the grid on which slots of a resolution begin and end; without a resolution it is the minute."""
    return timedelta(minutes=resolution_minutes or 1)


def is_due(slot: Slot, closed_until: datetime | None) -> bool:
    """Tell whether every window that starts in the slot is closed; of a catalog, whether the slot is over."""
    return closed_until is not None and slot.end <= closed_until
