"""Parts that were just frozen, kept in memory until they are sent, lest they are rendered twice."""

import time

MOST_BYTES = 64 * 1024 * 1024
KEEP_SECONDS = 60.0


class KeptParts:
    """Bodies by their SHA-256, in bounded memory: what is not found here is rendered again."""

    def __init__(self, most_bytes: int = MOST_BYTES, keep_seconds: float = KEEP_SECONDS) -> None:
        self._most_bytes = most_bytes
        self._keep_seconds = keep_seconds
        self._bytes = 0
        self._kept: dict[bytes, tuple[float, bytes]] = {}

    def keep(self, sha256: bytes, body: bytes) -> None:
        """Keep a body for a while, unless there is no room.

        Parts are sent in their order, so that those of a long run which come later make no earlier one go.
        """
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[0] <= now - self._keep_seconds:
            self.take(next(iter(self._kept)))
        if sha256 not in self._kept and self._bytes + len(body) <= self._most_bytes:
            self._kept[sha256] = (now, body)
            self._bytes += len(body)

    def take(self, sha256: bytes) -> bytes | None:
        """Return a body that was kept, and keep it no longer."""
        kept = self._kept.pop(sha256, None)
        if kept is None:
            return None
        self._bytes -= len(kept[1])
        return kept[1]
