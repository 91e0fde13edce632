"""How the closed windows are cut by time: the fine resolutions by day, the coarse ones by month (UTC)."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from services.platform.partitions import TimePartition

_BY_DAY = (1, 5)
_NAME = re.compile(r"measurement_(\d+)m_(\d{4})(\d{2})(\d{2})?")


def partition_of(resolution_minutes: int, window_start: datetime) -> TimePartition:
    """Return the partition that holds the measurements of a window."""
    parent = f"measurement_{resolution_minutes}m"
    day = window_start.replace(hour=0, minute=0, second=0, microsecond=0)
    if resolution_minutes in _BY_DAY:
        return TimePartition(parent, f"{parent}_{day:%Y%m%d}", day, day + timedelta(days=1))
    month = day.replace(day=1)
    following = (month + timedelta(days=31)).replace(day=1)
    return TimePartition(parent, f"{parent}_{month:%Y%m}", month, following)


def partitions_named(names: Iterable[str]) -> list[TimePartition]:
    """Return the partitions that have these names, in the order of time; names that are not ours are left out."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None:
            start = datetime(int(match[2]), int(match[3]), int(match[4] or 1), tzinfo=UTC)
            found.append(partition_of(int(match[1]), start))
    return sorted(found, key=lambda part: part.start)
