"""How long to wait after a failure."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.retry import RetryPolicy

POLICY = RetryPolicy(first=timedelta(seconds=1), longest=timedelta(hours=1))
JITTERS = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (12, 2048), (13, 3600), (40, 3600), (10_000, 3600)]
)
def test_delays_double_up_to_the_longest(failures: int, seconds: int) -> None:
    assert POLICY.delay(failures, jitter=0) == timedelta(seconds=seconds)


@given(failures=st.integers(1, 10_000), jitter=JITTERS)
def test_jitter_takes_off_at_most_a_half(failures: int, jitter: float) -> None:
    full = POLICY.delay(failures, jitter=0)
    assert full / 2 <= POLICY.delay(failures, jitter) <= full


@given(failures=st.integers(1, 10_000), jitter=JITTERS, asked=st.timedeltas(timedelta(), timedelta(days=30)))
def test_the_receivers_wish_is_a_lower_bound_up_to_a_day(failures: int, jitter: float, asked: timedelta) -> None:
    """A receiver that says when its maintenance ends is left alone until then, even past our own longest delay."""
    delay = POLICY.delay(failures, jitter, asked)
    assert delay >= min(asked, timedelta(days=1))
    assert delay <= max(POLICY.longest, min(asked, timedelta(days=1)))
