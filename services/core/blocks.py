"""Rows of a run by the thousand, as columns of bytes: what of a meter's rows never changes is written once.

A row is what stands before its time, the time, what stands behind it, and the four values (power, energy, flow,
volume), each a text with two decimals or `N/A`. The values come as one text, separated by commas.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class MeterNames(NamedTuple):
    """What a meter's rows say of it, with the names in force."""

    meter_id: int
    meter_type: str
    meter_name: str
    meter_unit: str
    site_id: int
    site_name: str


class Layout(NamedTuple):
    """How a row is written."""

    around: Callable[[MeterNames, int], tuple[bytes, bytes]]
    """What stands before and behind the time in the rows of a meter, for a resolution in minutes."""
    between: tuple[bytes, bytes, bytes] | None
    """What stands between the four values; None: the commas that they come with."""
    end: bytes
    """Behind the last value."""


class Block:
    """Consecutive rows, each a fixed number of pieces with what stands between two rows at its end."""

    def __init__(self, layout: Layout, joint: bytes) -> None:
        self._layout = layout
        self._end = layout.end + joint
        self.stride = 5 if layout.between is None else 11
        self.pieces: list[bytes] = []

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self.pieces) // self.stride

    def row_bytes(self, place: int) -> int:
        """Return the size of a row, with what stands between two rows."""
        return sum(map(len, self.pieces[place * self.stride : (place + 1) * self.stride]))

    def add(self, time: bytes, before: Sequence[bytes], behind: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Add the rows of one window: of each meter what stands around the time, and its values."""
        stride = self.stride
        pieces = [self._end] * (stride * len(values))
        pieces[0::stride] = before
        pieces[1::stride] = [time] * len(values)
        pieces[2::stride] = behind
        if self._layout.between is None:
            pieces[3::stride] = values
        else:
            cells = b",".join(values).split(b",")
            for number in range(4):
                pieces[3 + 2 * number :: stride] = cells[number::4]
            for number, text in enumerate(self._layout.between):
                pieces[4 + 2 * number :: stride] = [text] * len(values)
        if self.pieces:
            self.pieces += pieces
        else:
            self.pieces = pieces
