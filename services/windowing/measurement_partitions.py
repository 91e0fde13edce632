"""How the closed windows are cut by time: the fine resolutions by day, the coarse ones by month (UTC)."""

from datetime import datetime, timedelta

from services.platform.partitions import TimePartition

_BY_DAY = (1, 5)


def partition_of(resolution_minutes: int, window_start: datetime) -> TimePartition:
    """Return the partition that holds the measurements of a window."""
    parent = f"measurement_{resolution_minutes}m"
    day = window_start.replace(hour=0, minute=0, second=0, microsecond=0)
    if resolution_minutes in _BY_DAY:
        return TimePartition(parent, f"{parent}_{day:%Y%m%d}", day, day + timedelta(days=1))
    month = day.replace(day=1)
    following = (month + timedelta(days=31)).replace(day=1)
    return TimePartition(parent, f"{parent}_{month:%Y%m}", month, following)
