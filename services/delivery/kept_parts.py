"""Parts that were just frozen, kept in memory until they are sent, lest they are rendered twice."""

import time
from typing import NamedTuple

MOST_BYTES = 64 * 1024 * 1024
KEEP_SECONDS = 60.0


class _Kept(NamedTuple):
    since: float
    body: bytes
    wanted: int
    """How often it is to be taken: jobs with the same windows have the same parts."""


class KeptParts:
    """Bodies by their SHA-256, in bounded memory: what is not found here is rendered again."""

    def __init__(self, most_bytes: int = MOST_BYTES, keep_seconds: float = KEEP_SECONDS) -> None:
        self._most_bytes = most_bytes
        self._keep_seconds = keep_seconds
        self._bytes = 0
        self._kept: dict[bytes, _Kept] = {}

    def keep(self, sha256: bytes, body: bytes) -> None:
        """Keep a body for a while, unless there is no room.

        Parts are sent in their order, so that those of a long run which come later make no earlier one go.
        """
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values())).since <= now - self._keep_seconds:
            self._bytes -= len(self._kept.pop(next(iter(self._kept))).body)
        known = self._kept.pop(sha256, None)
        if known is not None:
            # Once more, and behind what is older.
            self._kept[sha256] = known._replace(since=now, wanted=known.wanted + 1)
        elif self._bytes + len(body) <= self._most_bytes:
            self._kept[sha256] = _Kept(now, body, 1)
            self._bytes += len(body)

    def take(self, sha256: bytes) -> bytes | None:
        """Return a body that was kept; once it was taken as often as it was kept, it is kept no longer."""
        kept = self._kept.get(sha256)
        if kept is None:
            return None
        if kept.wanted > 1:
            self._kept[sha256] = kept._replace(wanted=kept.wanted - 1)
        else:
            del self._kept[sha256]
            self._bytes -= len(kept.body)
        return kept.body
