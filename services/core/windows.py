"""When a window may be closed: a pure function of the partitions' watermarks."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from services.core.times import MICROSECOND, floor_to

RESOLUTIONS_MINUTES = (1, 5, 15, 60)
DEFAULT_GRACE = timedelta(minutes=5)


def platform_watermark(
    watermarks: Mapping[tuple[str, int], datetime | None], partitions: Collection[tuple[str, int]]
) -> datetime | None:
    """Return the instant before which everything that arrived has been stored, over all `partitions`.

    `partitions` are those of the broker's metadata: one from which nothing has been stored yet (a partition
    added a second ago, too) holds every window open, so the answer is then None.
    """
    found = [watermarks.get(partition) for partition in partitions]
    known = [watermark for watermark in found if watermark is not None]
    return min(known) if known and len(known) == len(found) else None


def cut_off(window_start: datetime, resolution_minutes: int, grace: timedelta) -> datetime:
    """Return the last arrival that still belongs to the window: its end plus the grace, inclusive."""
    return window_start + timedelta(minutes=resolution_minutes) + grace


def due_until(watermark: datetime, resolution_minutes: int, grace: timedelta) -> datetime:
    """Return T such that exactly the windows that start before T can be closed.

    The cut-off is inclusive and a watermark says that everything *before* it is stored: another record with the
    very same time may follow. So a window is due once the watermark has passed its cut-off, not when it reaches it.
    """
    return floor_to(watermark - grace - MICROSECOND, timedelta(minutes=resolution_minutes))


def opening(first_arrival: datetime, resolution_minutes: int, grace: timedelta) -> datetime:
    """Return the start of the first window that the log can hold anything of.

    Windows before it had their cut-off before the first record arrived: they are empty and need no closing.
    """
    resolution = timedelta(minutes=resolution_minutes)
    return floor_to(first_arrival - grace - MICROSECOND, resolution)
