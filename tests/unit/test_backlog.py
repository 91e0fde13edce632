"""Batches advance the partitions together, in order, and lose nothing."""

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.backlog import Backlog
from services.platform.kafka import Partition, PartitionBatch, Record

A: Partition = ("readings.logger", 0)
B: Partition = ("readings.logger", 1)


def records(times_ms: list[int], size: int = 10) -> list[Record]:
    return [Record(offset, time_ms, None, b"x" * size, False) for offset, time_ms in enumerate(times_ms)]


def cut(backlog: Backlog, max_bytes: int) -> dict[Partition, list[int]]:
    return {(topic, number): [r.offset for r in found] for topic, number, found in backlog.cut(max_bytes)}


def test_a_cut_takes_the_same_stretch_of_arrival_from_each_partition() -> None:
    backlog = Backlog()
    backlog.add([PartitionBatch(*A, records([1, 1, 2, 2, 3])), PartitionBatch(*B, records([1, 2, 2, 2, 2, 3]))])
    assert cut(backlog, 40) == {A: [0, 1], B: [0]}
    assert cut(backlog, 1000) == {A: [2, 3, 4], B: [1, 2, 3, 4, 5]}
    assert not backlog


def test_what_nothing_waits_of_is_asked_for() -> None:
    backlog = Backlog()
    backlog.add([PartitionBatch(*A, records([1]))])
    assert backlog.without([A, B]) == [B]


def test_ticks_have_no_size_but_are_taken() -> None:
    backlog = Backlog()
    backlog.add([PartitionBatch(*A, [Record(0, 5, b"tick", None, True)])])
    assert cut(backlog, 1) == {A: [0]}


def test_one_clock_that_was_wrong_holds_nobody_back() -> None:
    """Arrival never goes back: a record that is stamped earlier than those before it arrived with them."""
    backlog = Backlog()
    backlog.add([PartitionBatch(*A, records([5, 6, 7, 8, 0])), PartitionBatch(*B, records([5, 5, 5, 6, 7]))])
    assert cut(backlog, 1000) == {A: [0, 1, 2], B: [0, 1, 2, 3, 4]}
    assert cut(backlog, 1000) == {A: [3, 4]}
    assert not backlog


def test_clocks_that_run_backwards_do_not_cut_records_one_by_one() -> None:
    backlog = Backlog()
    backlog.add([PartitionBatch(*A, records(list(range(100, 0, -1))))])
    assert cut(backlog, 500) == {A: list(range(50))}


@given(
    st.dictionaries(
        st.sampled_from([A, B, ("readings.bridge", 0)]), st.lists(st.integers(0, 5), min_size=1, max_size=9)
    ),
    st.integers(1, 100),
)
def test_whatever_the_clocks_everything_is_cut_once_in_order(times: dict[Partition, list[int]], size: int) -> None:
    backlog = Backlog()
    backlog.add(PartitionBatch(*key, records(some)) for key, some in times.items())
    taken: dict[Partition, list[int]] = {key: [] for key in times}
    for _round in range(100):
        if not backlog:
            break
        found = cut(backlog, size)
        assert found
        for key, offsets in found.items():
            taken[key] += offsets
    assert taken == {key: list(range(len(some))) for key, some in times.items()}
