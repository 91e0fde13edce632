"""When windows close: tables of cases, and what must hold for any watermark."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.times import MICROSECOND
from services.core.windows import RESOLUTIONS_MINUTES, cut_off, due_until, opening, platform_watermark

GRACE = timedelta(minutes=5)
A, B = ("readings.logger", 0), ("readings.bridge", 0)


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-20T{clock}+00:00")


instants = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - zone follows
resolutions = st.sampled_from(RESOLUTIONS_MINUTES)
graces = st.integers(0, 86_400).map(lambda seconds: timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("watermarks", "partitions", "expected"),
    [
        ({A: at("10:00"), B: at("10:01")}, [A, B], at("10:00")),
        ({A: at("10:00"), B: None}, [A, B], None),  # assigned, but nothing stored yet
        ({A: at("10:00")}, [A, B], None),  # added a second ago, in nobody's progress
        ({A: at("10:00"), B: at("09:00")}, [A], at("10:00")),  # a partition that is no more
        ({}, [], None),
        ({A: at("10:00")}, [], None),
    ],
)
def test_the_platform_is_as_far_as_its_slowest_partition(
    watermarks: dict[tuple[str, int], datetime | None],
    partitions: list[tuple[str, int]],
    expected: datetime | None,
) -> None:
    assert platform_watermark(watermarks, partitions) == expected


@pytest.mark.parametrize(
    ("start", "resolution", "expected"),
    [
        ("10:00", 1, "10:06"),
        ("10:00", 5, "10:10"),
        ("10:00", 15, "10:20"),
        ("10:00", 60, "11:05"),
        ("10:55", 5, "11:05"),
    ],
)
def test_the_cut_off_is_the_end_plus_the_grace(start: str, resolution: int, expected: str) -> None:
    assert cut_off(at(start), resolution, GRACE) == at(expected)


@pytest.mark.parametrize(
    ("watermark", "resolution", "expected"),
    [
        ("10:06:00", 1, "10:00"),  # reached, not passed: another record with this very time may follow
        ("10:06:00.000001", 1, "10:01"),
        ("10:06:59", 1, "10:01"),
        ("10:10:00", 5, "10:00"),
        ("10:10:00.000001", 5, "10:05"),
        ("10:14:59", 5, "10:05"),
        ("10:20:00", 15, "10:00"),
        ("10:20:00.001", 15, "10:15"),
        ("11:05:00", 60, "10:00"),
        ("11:05:00.001", 60, "11:00"),
    ],
)
def test_a_window_is_due_once_the_watermark_passed_its_cut_off(watermark: str, resolution: int, expected: str) -> None:
    assert due_until(at(watermark), resolution, GRACE) == at(expected)


@given(watermark=instants, resolution=resolutions, grace=graces)
def test_exactly_the_windows_before_due_until_have_a_passed_cut_off(
    watermark: datetime, resolution: int, grace: timedelta
) -> None:
    due = due_until(watermark, resolution, grace)
    assert cut_off(due - timedelta(minutes=resolution), resolution, grace) < watermark
    assert cut_off(due, resolution, grace) >= watermark


@given(one=instants, other=instants, resolution=resolutions, grace=graces)
def test_what_is_due_never_moves_back(one: datetime, other: datetime, resolution: int, grace: timedelta) -> None:
    earlier, later = sorted((one, other))
    assert due_until(earlier, resolution, grace) <= due_until(later, resolution, grace)


@given(first_arrival=instants, resolution=resolutions, grace=graces)
def test_no_window_before_the_opening_can_hold_the_first_record(
    first_arrival: datetime, resolution: int, grace: timedelta
) -> None:
    first = opening(first_arrival, resolution, grace)
    assert cut_off(first - timedelta(minutes=resolution), resolution, grace) < first_arrival
    assert cut_off(first, resolution, grace) >= first_arrival


@given(first_arrival=instants, resolution=resolutions, grace=graces)
def test_nothing_is_due_before_the_opening_when_only_the_first_record_is_stored(
    first_arrival: datetime, resolution: int, grace: timedelta
) -> None:
    assert due_until(first_arrival, resolution, grace) == opening(first_arrival, resolution, grace)
    assert due_until(first_arrival + MICROSECOND, resolution, grace) >= opening(first_arrival, resolution, grace)
