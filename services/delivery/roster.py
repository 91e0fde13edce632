"""Meters in their order: rows come sorted, so those of a stretch of rows are nearly always a stretch of a roster."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence


class Roster:
    """Meters, ten digits each, sorted. Comparing with it is several times as fast as looking each meter up."""

    def __init__(self, meters: Iterable[bytes] = ()) -> None:
        self.meters = sorted(meters)

    def place(self, meters: Sequence[bytes]) -> slice | None:
        """Return where these meters stand, one after the other; None where they do not."""
        if not meters:
            return None
        first = bisect_left(self.meters, meters[0])
        place = slice(first, first + len(meters))
        return place if self.meters[place] == meters else None
