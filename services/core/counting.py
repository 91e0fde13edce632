"""What one meter's window amounts to, from the readings that are known at its cut-off: the rules, one window at a time.

Windowing closes by one SQL statement that follows the same rules (`windowing/counting_sql.py`).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import IntFlag, StrEnum
from typing import Any, NamedTuple

from services.core.registers import Register, RegisterReading, Step, StepKind, walk
from services.core.times import iso_seconds

_MINUTE = timedelta(minutes=1)


class RowFlag(IntFlag):
    """What a row says of itself."""

    SPANS_GAP = 1
    ROLLED_OVER = 2
    RESET = 4
    NOT_ALL_COUNTED = 8


class EventKind(StrEnum):
    """What is worth telling of one meter's window. Stable: operators filter by these."""

    REGISTERS_BEGIN = "registers_begin"
    PULSES_BEGIN = "pulses_begin"
    REGISTER_ROLLED_OVER = "register_rolled_over"
    REGISTER_RESET = "register_reset"
    REGISTER_BEYOND_MODULUS = "register_beyond_modulus"
    OTHER_KIND_IGNORED = "other_kind_ignored"
    OVERLAP_IGNORED = "overlap_ignored"


class Event(NamedTuple):
    """Something that closing found in a window, with its particulars."""

    kind: EventKind
    detail: dict[str, Any]


class KnownReading(NamedTuple):
    """A reading in its version at the cut-off, with an interval that is not longer than the window."""

    measured_at: datetime
    interval_minutes: int
    value: int
    is_register: bool

    @property
    def ends_at(self) -> datetime:
        """The end of the interval."""
        return self.measured_at + self.interval_minutes * _MINUTE


class Content(NamedTuple):
    """What the row of a window holds before conversion."""

    pulses: int
    covered_minutes: int
    flags: RowFlag = RowFlag(0)
    start: Register | None = None
    end: Register | None = None


class Closed(NamedTuple):
    """A window of one meter: its row (None: nothing can be said), and where its registers stand for the next one."""

    content: Content | None
    events: tuple[Event, ...]
    register: Register | None
    """None: the meter sends pulses."""


def close_window(
    window_start: datetime,
    resolution_minutes: int,
    readings: Sequence[KnownReading],
    before: Register | None,
    modulus: int | None,
    largest_share: Decimal,
) -> Closed:
    """Close a window with at least one reading; `before` is where the meter's previous window left its registers.

    A meter counts by what its latest windows counted by: what comes beside it of the other kind does not count, and
    only a window with the other kind alone changes over.
    """
    registers = [reading for reading in readings if reading.is_register]
    pulses = [reading for reading in readings if not reading.is_register]
    by_register = before is not None if registers and pulses else bool(registers)
    if by_register:
        return _by_registers(window_start, resolution_minutes, registers, len(pulses), before, modulus, largest_share)
    counting, ignored = without_overlaps(pulses)
    events = []
    if before is not None:
        events.append(Event(EventKind.PULSES_BEGIN, {}))
    if registers:
        events.append(Event(EventKind.OTHER_KIND_IGNORED, {"kind": "registers", "readings": len(registers)}))
    if ignored:
        detail = {"readings": len(ignored), "pulses": sum(reading.value for reading in ignored)}
        events.append(Event(EventKind.OVERLAP_IGNORED, detail))
    content = Content(
        sum(reading.value for reading in counting),
        sum(reading.interval_minutes for reading in counting),
        RowFlag.NOT_ALL_COUNTED if registers or ignored else RowFlag(0),
    )
    return Closed(content, tuple(events), None)


def without_overlaps(pulses: list[KnownReading]) -> tuple[list[KnownReading], list[KnownReading]]:
    """Tell the readings that count from those that lie inside a longer one. Intervals nest, they never cross."""
    counting: list[KnownReading] = []
    ignored = []
    for reading in sorted(pulses):
        if counting and reading.measured_at < counting[-1].ends_at:
            ignored.append(reading)
        else:
            counting.append(reading)
    return counting, ignored


def _by_registers(
    window_start: datetime,
    resolution_minutes: int,
    registers: list[KnownReading],
    ignored_pulses: int,
    before: Register | None,
    modulus: int | None,
    largest_share: Decimal,
) -> Closed:
    readings = [RegisterReading(reading.ends_at, reading.measured_at, reading.value) for reading in registers]
    walked = walk(before, readings, modulus, largest_share)
    rolled_over = [step for step in walked.steps if step.kind is StepKind.ROLL_OVER]
    reset = [step for step in walked.steps if step.kind is StepKind.RESET]
    events = []
    if walked.base is not None:
        events.append(Event(EventKind.REGISTERS_BEGIN, _as_json(walked.base)))
    if ignored_pulses:
        events.append(Event(EventKind.OTHER_KIND_IGNORED, {"kind": "pulses", "readings": ignored_pulses}))
    if rolled_over:
        events.append(Event(EventKind.REGISTER_ROLLED_OVER, _steps_as_json(modulus, rolled_over)))
    if reset:
        events.append(Event(EventKind.REGISTER_RESET, _steps_as_json(modulus, reset)))
    beyond = [Register(one.at, one.value) for one in sorted(readings) if modulus is not None and one.value >= modulus]
    if beyond:
        detail = {"modulus": modulus, "registers": [_as_json(register) for register in beyond]}
        events.append(Event(EventKind.REGISTER_BEYOND_MODULUS, detail))
    if not walked.steps:
        return Closed(None, tuple(events), walked.end)
    start = walked.steps[0].before
    flags = RowFlag(0)
    for flag, applies in (
        (RowFlag.SPANS_GAP, start.at < window_start),
        (RowFlag.ROLLED_OVER, bool(rolled_over)),
        (RowFlag.RESET, bool(reset)),
        (RowFlag.NOT_ALL_COUNTED, bool(ignored_pulses)),
    ):
        flags |= flag if applies else 0
    covered = min(sum(reading.interval_minutes for reading in registers), resolution_minutes)
    return Closed(Content(walked.consumed, covered, flags, start, walked.end), tuple(events), walked.end)


def _as_json(register: Register) -> dict[str, Any]:
    return {"register": register.value, "at": iso_seconds(register.at)}


def _steps_as_json(modulus: int | None, steps: list[Step]) -> dict[str, Any]:
    return {
        "modulus": modulus,
        "steps": [
            {"from": step.before.value, "to": step.after.value, "at": iso_seconds(step.after.at)} for step in steps
        ],
    }
