"""When nearly everything is refused, and when only some of it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.refusal_guard import NONE_RECENT, Recent, RefusalGuard, TopicRefusals
from services.platform.errors import OperatorNeeded

GUARD = RefusalGuard(1000, 90)
counts = st.integers(min_value=0, max_value=5000)


@given(st.lists(st.tuples(counts, counts)), st.integers(min_value=1, max_value=3000))
def test_what_is_looked_at_never_exceeds_its_size_and_never_invents_refusals(
    batches: list[tuple[int, int]], readings: int
) -> None:
    recent = NONE_RECENT
    for stored, refused in batches:
        recent = recent.then(stored, refused, readings)
        assert recent.stored >= 0
        assert recent.refused >= 0
    total = sum(stored + refused for stored, refused in batches)
    assert recent.total == min(total, readings)
    if not any(refused for _stored, refused in batches):
        assert recent.refused == 0


@pytest.mark.parametrize(
    ("recent", "is_crossed"),
    [
        ([Recent(0, 999)], False),
        ([Recent(0, 1000)], True),
        ([Recent(100, 900)], False),
        ([Recent(99, 901)], True),
        ([Recent(0, 1000), NONE_RECENT, NONE_RECENT], False),
        ([Recent(0, 1000), Recent(0, 5), NONE_RECENT, NONE_RECENT], True),
        ([Recent(0, 1000), Recent(1000, 0)], False),
        ([Recent(0, 300)] * 4, True),
        ([], False),
    ],
)
def test_the_line(recent: list[Recent], is_crossed: bool) -> None:
    assert GUARD.is_crossed(recent) is is_crossed


def test_a_hundred_percent_never_stops() -> None:
    assert not RefusalGuard(1, 100).is_crossed([Recent(0, 5000)])


def test_partitions_of_other_processes_count_and_an_allowance_lets_pass() -> None:
    ours = {("t", 0): Recent(0, 1000)}
    GUARD.judge("t", ours, TopicRefusals({("t", 0): Recent(1000, 0), ("t", 1): Recent(1000, 0)}, False), "")
    GUARD.judge("t", ours, TopicRefusals({("t", 1): Recent(0, 1000)}, True), "")
    with pytest.raises(OperatorNeeded, match="resume-refusing t"):
        GUARD.judge("t", ours, TopicRefusals({("t", 0): Recent(1000, 0), ("t", 1): Recent(0, 9)}, False), "x")
