"""The order of versions is total: whoever replays whatever in whichever order agrees on the newest."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.core.readings import ReadingVersion, newest

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def version(revision: int, arrived_s: int, topic: int, partition: int, offset: int, place: int) -> ReadingVersion:
    arrived_at = NOON + timedelta(seconds=arrived_s)
    return ReadingVersion(NOON, arrived_at, 1, offset, 7, revision, partition, place, 1, topic, False)


versions = st.builds(
    version,
    revision=st.integers(0, 2),
    arrived_s=st.integers(0, 3),
    topic=st.integers(0, 1),
    partition=st.integers(0, 2),
    offset=st.integers(0, 3),
    place=st.integers(0, 2),
)


@given(st.lists(versions, min_size=1, max_size=5, unique_by=lambda v: (v.source_topic, v.source_partition, v.order)))
def test_every_permutation_has_the_same_newest_at_every_cut_off(some: list[ReadingVersion]) -> None:
    for second in range(-1, 5):
        cut_off = NOON + timedelta(seconds=second)
        found = {newest(list(order), as_of=cut_off) for order in itertools.permutations(some)}
        assert len(found) == 1


def test_the_order_is_revision_then_arrival_then_place_in_the_log() -> None:
    ascending = [
        version(0, 9, 1, 9, 9, 9),
        version(1, 0, 1, 9, 9, 9),
        version(1, 1, 0, 9, 9, 9),
        version(1, 1, 1, 0, 9, 9),
        version(1, 1, 1, 1, 0, 9),
        version(1, 1, 1, 1, 1, 0),
        version(1, 1, 1, 1, 1, 1),
    ]
    assert [v.order for v in ascending] == sorted({v.order for v in ascending})
