"""Rows of a run as PostgreSQL gives them, and as a block that is ready to be cut into parts.

A line is `1MMMM0000NNNNNNNNNN,power,energy,flow,volume`: minutes since the slot's start, the meter, and the values as
they are written; whatever is the same in all rows of a meter is added here. `2MMMMPPEENNNNNNNNNN,…` is a row that lacks
intervals: it has PP of EE.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.blocks import Block
from services.core.parts import PartFormat
from services.core.times import iso_seconds
from services.delivery.interval_counts import Partial, Tally
from services.delivery.model import RowRange

_MINUTE = timedelta(minutes=1)
_IS_PARTIAL = b"2"
_TIME = slice(1, 5)
_PRESENT = slice(5, 7)
_EXPECTED = slice(7, 9)
_METER = slice(9, 19)
_VALUES = slice(20, None)


class Taken(NamedTuple):
    """Whole lines, and whether any of their rows may lack intervals."""

    lines: Sequence[bytes]
    may_lack: bool

    def behind(self, count: int) -> "Taken":
        """Return the lines behind the first `count`."""
        return self._replace(lines=self.lines[count:])


_NOTHING = Taken((), may_lack=False)


class Lines:
    """Gathers lines from data that may end anywhere."""

    def __init__(self) -> None:
        self.count = 0
        """How many whole lines there are."""
        self._whole = _NOTHING
        self._data: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Take what came next."""
        self._data.append(data)
        self.count += data.count(b"\n")

    def take(self) -> Taken:
        """Return all whole lines, and hold them no longer."""
        data = b"".join(self._data)
        before, self._whole, self.count = self._whole, _NOTHING, 0
        may_lack = before.may_lack or data.startswith(_IS_PARTIAL) or b"\n" + _IS_PARTIAL in data
        lines = data.split(b"\n")
        self._data = [lines.pop()]
        return Taken([*before.lines, *lines] if before.lines else lines, may_lack)

    def put_back(self, taken: Taken) -> None:
        """Hold lines that were taken last, in front of all others."""
        self._whole, self.count = taken, len(taken.lines)


class RowBlock(Block):
    """Rows of a run from some place on, and where each of them lies."""

    def __init__(self, part_format: PartFormat, slot_start: datetime, taken: Taken) -> None:
        super().__init__(part_format.layout, part_format.joint)
        self._slot_start = slot_start
        self._lines, self._may_lack = taken
        self._windows: list[tuple[datetime, Sequence[bytes]]] = []

    def rows(self, first: int, row_count: int) -> RowRange:
        """Return the place of `row_count` rows, in the run, of which the first is this block's row number `first`."""
        line = self._lines[first]
        return RowRange(self._slot_start + int(line[_TIME]) * _MINUTE, int(line[_METER]), row_count)

    def windows(self) -> Iterator[tuple[datetime, int, int]]:
        """Yield when each window starts, and which of the lines are of it: from the first to before the end."""
        lines, first = self._lines, 0
        while first < len(lines):
            time = lines[first][_TIME]
            end = len(lines)
            if lines[-1][_TIME] != time:
                end = bisect_right(lines, time, lo=first, key=lambda line: line[_TIME])
            yield self._slot_start + int(time) * _MINUTE, first, end
            first = end

    def meters(self, first: int, end: int) -> list[bytes]:
        """Return the meters of these lines, ten digits each."""
        return [line[_METER] for line in self._lines[first:end]]

    def add_window(
        self,
        at: datetime,
        meters: Sequence[bytes],
        around: tuple[Sequence[bytes], Sequence[bytes]],
        first: int,
        end: int,
    ) -> None:
        """Add the next window, with what stands before and behind the time in its rows."""
        values = [line[_VALUES] for line in self._lines[first:end]]
        self.add(iso_seconds(at).encode(), *around, values)
        self._windows.append((at, meters))

    def count(self, tally: Tally, row_count: int) -> None:
        """Have so many rows counted, from the first on."""
        first = 0
        for at, meters in self._windows:
            taken = meters if first + len(meters) <= row_count else meters[: row_count - first]
            if not taken:
                return
            lines = self._lines[first : first + len(taken)] if self._may_lack else ()
            partial = [line for line in lines if line.startswith(_IS_PARTIAL)]
            tally.add(at, taken, [Partial(line[_METER], int(line[_PRESENT]), int(line[_EXPECTED])) for line in partial])
            first += len(taken)
