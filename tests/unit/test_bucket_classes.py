"""How the meters of some buckets are told from others: by any divisor, it must be exactly those meters."""

from hypothesis import given
from hypothesis import strategies as st

from services.windowing.bucket_classes import simplest_classes


@given(
    st.integers(1, 24).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1)))
)
def test_exactly_the_meters_of_the_buckets_are_told(drawn: tuple[int, set[int]]) -> None:
    count, buckets = drawn
    divisor, remainders = simplest_classes(list(buckets), count)
    for meter_id in range(3 * count):
        assert (meter_id % divisor in remainders) == (meter_id % count in buckets)


def test_shares_of_the_connections_are_told_by_one_remainder() -> None:
    assert simplest_classes([6, 0, 2, 4], 8) == (2, [0])
    assert simplest_classes([5, 1], 8) == (4, [1])
    assert simplest_classes(range(8), 8) == (1, [0])
    assert simplest_classes([0, 1, 2], 8) == (8, [0, 1, 2])
    assert simplest_classes([0], 1) == (1, [0])
