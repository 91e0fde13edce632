"""Consumption from registers: the sum of the steps from reading to reading, which is the difference of the ends.

A register counts 0 … modulus - 1. Where it falls it has rolled over, if that is plausible, or else it was reset (the
meter was exchanged, say): then nothing can be said of that step, and it counts nothing. No step is negative.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from typing import NamedTuple

DEFAULT_LARGEST_SHARE = Decimal("0.05")
"""The largest plausible share of the modulus in one interval."""
_MINUTE = timedelta(minutes=1)


class Register(NamedTuple):
    """Where a register stands at an instant."""

    at: datetime
    value: int


class RegisterReading(NamedTuple):
    """A register at the end of an interval; their order is the order of walking."""

    at: datetime
    measured_at: datetime
    value: int

    @property
    def interval_minutes(self) -> int:
        """How long the interval is."""
        return (self.at - self.measured_at) // _MINUTE


class StepKind(Enum):
    """What happened between two readings."""

    RISE = auto()
    ROLL_OVER = auto()
    RESET = auto()


class Step(NamedTuple):
    """From one reading to the next."""

    before: Register
    after: Register
    kind: StepKind
    consumed: int


class Walk(NamedTuple):
    """The readings of a window walked in the order of time."""

    steps: tuple[Step, ...]
    base: Register | None
    """The first reading, where nothing was known before it: what was consumed up to it cannot be said."""
    end: Register

    @property
    def consumed(self) -> int:
        """The consumption between the beginning of the first step and the end of the last."""
        return sum(step.consumed for step in self.steps)


def step_to(before: Register, reading: RegisterReading, modulus: int | None, largest_share: Decimal) -> Step:
    """Return what the next reading of a register means.

    A register that falls has rolled over where both values are below the modulus and the consumption would be at most
    half of the modulus, and at most `largest_share` of it for each interval (as long as the reading's) since before.
    """
    after = Register(reading.at, reading.value)
    if reading.value >= before.value:
        return Step(before, after, StepKind.RISE, reading.value - before.value)
    if modulus is not None and before.value < modulus:
        consumed = reading.value - before.value + modulus
        minutes = max((reading.at - before.at) // _MINUTE, reading.interval_minutes)
        # Both sides times the interval, so that nothing is divided.
        if consumed * 2 <= modulus and consumed * reading.interval_minutes <= largest_share * modulus * minutes:
            return Step(before, after, StepKind.ROLL_OVER, consumed)
    return Step(before, after, StepKind.RESET, 0)


def walk(
    before: Register | None, readings: Iterable[RegisterReading], modulus: int | None, largest_share: Decimal
) -> Walk:
    """Walk readings from where the register stood before. Raises ValueError where there is neither."""
    steps: list[Step] = []
    base, at = None, before
    for reading in sorted(readings):
        if at is None:
            at = base = Register(reading.at, reading.value)
            continue
        steps.append(step_to(at, reading, modulus, largest_share))
        at = steps[-1].after
    if at is None:
        raise ValueError("there is nothing to walk")
    return Walk(tuple(steps), base, at)
