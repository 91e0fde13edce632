"""Which rows of a batch may be COPYed straight into `reading`, and which must be merged. Pure, a hint: the key judges.

A reading later than everything its meter has sent before, and alone in its batch, is surely new. The marks that this
is decided by live in memory; whatever they do not know goes through the merge, which is slower and always right.
"""

import asyncio
from datetime import date
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.core.columns import Columns
from services.core.times import from_epoch_microseconds
from services.ingest.binary_copy import encode_pieces

_SLOTS = 1 << 20
_UNKNOWN = -(2**63)
_DAY_US = 86_400_000_000


class WritePlan(NamedTuple):
    """The rows of a batch by the way they take; each sorted by (measured_at, meter_id)."""

    new_by_day: list[tuple[date, Columns]]
    to_merge: Columns

    @property
    def days(self) -> set[date]:
        """The days that need a partition."""
        merged = {_day(number) for number in np.unique(self.to_merge.measured_us // _DAY_US)}
        return {day for day, _rows in self.new_by_day} | merged


class EncodedPlan(NamedTuple):
    """A plan as the bytes of binary COPYs, ready to be sent."""

    days: set[date]
    new_by_day: list[tuple[date, list[bytes]]]
    to_merge: list[bytes]
    """Empty where there is nothing to merge."""


async def encode_plan(plan: WritePlan) -> EncodedPlan:
    """Encode a plan. Waits for nothing, but lets others run: meanwhile the batch before is being written."""
    new_by_day = [(day, await _encode(rows)) for day, rows in plan.new_by_day]
    return EncodedPlan(plan.days, new_by_day, await _encode(plan.to_merge) if len(plan.to_merge) else [])


async def _encode(rows: Columns) -> list[bytes]:
    pieces = []
    for piece in encode_pieces(rows):
        pieces.append(piece)
        await asyncio.sleep(0)
    return pieces


class HighWaterMarks:
    """The latest interval start of each meter seen so far: 8 MB, however many meters there are.

    Meters whose ids are equal modulo a million share a mark; then the earlier of them takes the slower way.
    """

    def __init__(self) -> None:
        self._marks = np.full(_SLOTS, _UNKNOWN, dtype=np.int64)

    def plan(self, columns: Columns) -> WritePlan:
        """Divide a batch, and remember its rows: whatever way they take, they will be stored."""
        order = np.lexsort((columns.meter_id, columns.measured_us))
        rows = columns.take(order)
        slots = rows.meter_id % _SLOTS
        marks = self._marks[slots]
        is_new = (rows.measured_us > marks) & (marks != _UNKNOWN) & ~_is_repeated(rows)
        np.maximum.at(self._marks, slots, rows.measured_us)
        new = rows.take(is_new)
        return WritePlan(_by_day(new), rows.take(~is_new))


def merge_everything(columns: Columns) -> WritePlan:
    """Return the plan that is right whatever the marks believe."""
    return WritePlan([], columns.take(np.lexsort((columns.meter_id, columns.measured_us))))


def _is_repeated(rows: Columns) -> npt.NDArray[np.bool_]:
    """Tell which of the sorted rows share meter and time with a neighbour."""
    same = (rows.meter_id[1:] == rows.meter_id[:-1]) & (rows.measured_us[1:] == rows.measured_us[:-1])
    repeated = np.zeros(len(rows), dtype=np.bool_)
    repeated[1:] |= same
    repeated[:-1] |= same
    return repeated


def _by_day(rows: Columns) -> list[tuple[date, Columns]]:
    days = rows.measured_us // _DAY_US
    found, starts = np.unique(days, return_index=True)
    ends = np.append(starts, len(rows))[1:]
    return [
        (_day(number), rows.take(np.arange(start, end))) for number, start, end in zip(found, starts, ends, strict=True)
    ]


def _day(number: np.int64) -> date:
    return from_epoch_microseconds(int(number) * _DAY_US).date()
