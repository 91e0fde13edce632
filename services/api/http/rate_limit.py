"""How many requests a caller may make: a bucket of tokens for each, in the memory of this process."""

import math
import time
from dataclasses import dataclass

_MOST_BUCKETS = 100_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimit:
    """`rate` requests a second in the long run, `burst` at once, for each name."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._buckets: dict[str, _Bucket] = {}

    def wait_seconds(self, name: str) -> int:
        """Take one request; return 0 where it may be made now, else after how many seconds it may."""
        now = time.monotonic()
        bucket = self._buckets.get(name)
        if bucket is None:
            self._make_room(now)
            bucket = self._buckets[name] = _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0
        return max(1, math.ceil((1 - bucket.tokens) / self._rate))

    def _make_room(self, now: float) -> None:
        """Forget those whose bucket is full again: it makes no difference."""
        if len(self._buckets) < _MOST_BUCKETS:
            return
        full_after = self._burst / self._rate
        self._buckets = {name: one for name, one in self._buckets.items() if now - one.at < full_after}
        if len(self._buckets) >= _MOST_BUCKETS:
            self._buckets.clear()
