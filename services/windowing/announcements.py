"""Which due windows to announce: each once, and again when nobody serves them, for a message may be lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.core.messages import WindowsDue


class BucketKey(NamedTuple):
    """One bucket of one resolution, the unit of closing."""

    resolution_minutes: int
    bucket: int


@dataclass(frozen=True, slots=True)
class _Announced:
    due_until: datetime
    frontier: datetime
    announced_at: float
    unserved_since: float


class Announcements:
    """Remembers what was announced. Times are of the monotonic clock, in seconds."""

    def __init__(self, repeat_after_seconds: float) -> None:
        self._repeat_after_seconds = repeat_after_seconds
        self._announced: dict[BucketKey, _Announced] = {}

    def pick(
        self, frontiers: Mapping[BucketKey, datetime], due_until: Mapping[int, datetime], now: float
    ) -> list[WindowsDue]:
        """Return what to announce now, the oldest windows first, and remember it as announced.

        `frontiers` are where the buckets stand, `due_until` where each resolution may be closed to. A bucket that is
        behind is announced when it became due further, and when it has not moved since it was last announced.
        """
        picked = []
        for key, frontier in sorted(frontiers.items(), key=lambda item: (item[1], item[0])):
            due = due_until[key.resolution_minutes]
            if frontier >= due:
                self._announced.pop(key, None)
                continue
            before = self._announced.get(key)
            moved = before is None or frontier > before.frontier
            unserved_since = now if before is None or moved else before.unserved_since
            announced_at = now if before is None or moved else before.announced_at
            if before is None or due > before.due_until or now - announced_at >= self._repeat_after_seconds:
                picked.append(WindowsDue(key.resolution_minutes, key.bucket, due))
                announced_at = now
            self._announced[key] = _Announced(due, frontier, announced_at, unserved_since)
        return picked

    @property
    def unserved_since(self) -> float | None:
        """Since when the bucket that waits longest has not moved, although announced; None when none waits."""
        return min((announced.unserved_since for announced in self._announced.values()), default=None)
