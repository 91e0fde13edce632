"""Registers and what they add up to: roll-overs, resets, and the sum over any windows."""

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.counting import EventKind, KnownReading, RowFlag, close_window
from services.core.registers import Register, RegisterReading, StepKind, step_to, walk
from services.core.times import floor_to
from tests.support.closing import MINUTE, T0

SHARE = Decimal("0.05")


@pytest.mark.parametrize(
    ("before", "after", "modulus", "kind", "consumed"),
    [
        (5, 5, 100, StepKind.RISE, 0),
        (5, 80, 100, StepKind.RISE, 75),  # however much: a rise is what the register says
        (98, 3, 100, StepKind.ROLL_OVER, 5),
        (98, 4, 100, StepKind.RESET, 0),
        (99, 0, 100, StepKind.ROLL_OVER, 1),
        (98, 3, None, StepKind.RESET, 0),
        (100, 1, 100, StepKind.RESET, 0),
        (50, 120, 100, StepKind.RISE, 70),
    ],
)
def test_a_step_of_one_interval(before: int, after: int, modulus: int | None, kind: StepKind, consumed: int) -> None:
    step = step_to(Register(T0, before), RegisterReading(T0 + MINUTE, T0, after), modulus, SHARE)
    assert (step.kind, step.consumed) == (kind, consumed)


@pytest.mark.parametrize(("minutes", "kind"), [(4, StepKind.RESET), (5, StepKind.ROLL_OVER), (500, StepKind.ROLL_OVER)])
def test_time_makes_more_plausible(minutes: int, kind: StepKind) -> None:
    at = T0 + minutes * MINUTE
    assert step_to(Register(T0, 90), RegisterReading(at, at - MINUTE, 15), 100, SHARE).kind is kind


def test_never_more_than_half_of_the_modulus() -> None:
    at = T0 + timedelta(days=9)
    steps = [step_to(Register(T0, 99), RegisterReading(at, at - MINUTE, after), 100, SHARE) for after in (49, 50)]
    assert [(step.kind, step.consumed) for step in steps] == [(StepKind.ROLL_OVER, 50), (StepKind.RESET, 0)]


def test_a_share_is_of_the_readings_own_interval() -> None:
    """An hourly register may move as far in an hour as one of a minute in a minute."""
    at = T0 + 60 * MINUTE
    assert step_to(Register(T0, 98), RegisterReading(at, T0, 3), 100, SHARE).kind is StepKind.ROLL_OVER
    assert step_to(Register(T0, 98), RegisterReading(at, T0, 4), 100, SHARE).kind is StepKind.RESET


def test_there_must_be_something_to_walk() -> None:
    with pytest.raises(ValueError, match="nothing to walk"):
        walk(None, [], None, SHARE)


READINGS = st.dictionaries(st.integers(0, 400), st.integers(0, 1500), min_size=1, max_size=40)


@given(READINGS, st.sampled_from([1, 5, 15, 60]), st.none() | st.just(1000))
def test_rows_and_what_is_open_are_the_difference_of_the_registers_but_for_resets(
    values: dict[int, int], resolution: int, modulus: int | None
) -> None:
    windows: dict[int, list[KnownReading]] = {}
    for minute, value in sorted(values.items()):
        reading = KnownReading(T0 + minute * MINUTE, 1, value, is_register=True)
        windows.setdefault(minute // resolution, []).append(reading)
    closed_windows, register, consumed, lost, rolled = len(windows) - 1, None, 0, 0, 0
    for number in sorted(windows)[:closed_windows]:
        start = floor_to(windows[number][0].measured_at, resolution * MINUTE)
        closed = close_window(start, resolution, windows[number], register, modulus, SHARE)
        for event in closed.events:
            steps = event.detail.get("steps", [])
            if event.kind is EventKind.REGISTER_RESET:
                lost += sum(step["from"] - step["to"] for step in steps)
            if event.kind is EventKind.REGISTER_ROLLED_OVER:
                rolled += len(steps)
        if closed.content is not None:
            assert closed.content.pulses >= 0
            assert (RowFlag.SPANS_GAP in closed.content.flags) is (register is not None and register.at < start)
            if register is not None:
                assert closed.content.start == register
            assert closed.content.end == closed.register
            consumed += closed.content.pulses
        else:
            assert register is None
        register = closed.register
    still_open = walk(register, [_as_register(one) for one in windows[max(windows)]], None, SHARE)
    first, last = values[min(values)], values[max(values)]
    gone = sum(step.before.value - step.after.value for step in still_open.steps if step.kind is StepKind.RESET)
    assert consumed + still_open.consumed == last - first + lost + gone + rolled * (modulus or 0)


def _as_register(reading: KnownReading) -> RegisterReading:
    return RegisterReading(reading.ends_at, reading.measured_at, reading.value)
