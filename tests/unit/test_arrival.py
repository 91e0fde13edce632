"""When a record arrived: what Kafka holds, whatever a publisher's clock said, and never earlier than before."""

from datetime import UTC, datetime, timedelta

import pytest

from services.core.readings import FUTURE_TOLERANCE
from services.platform.kafka import Record, arrival_of

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
CENTURY = timedelta(days=36_500)


def stamped(milliseconds: int) -> Record:
    return Record(0, milliseconds, None, b"{}", is_tick=False)


def test_arrival_never_goes_back() -> None:
    later = T0 + timedelta(milliseconds=1)
    assert arrival_of(stamped(1_795_168_800_001), T0) == later
    assert arrival_of(stamped(1_795_168_800_000), later) == later


@pytest.mark.parametrize("milliseconds", [-(2**63), -100_000_000_000_000, -1, 0, 2**62, 2**63 - 1])
def test_whatever_time_a_publisher_names_it_is_one_that_can_be_reckoned_with(milliseconds: int) -> None:
    arrival = arrival_of(stamped(milliseconds), None)
    assert arrival == datetime(1970 if milliseconds <= 0 else 3000, 1, 1, tzinfo=UTC)
    assert arrival - CENTURY < arrival < arrival + FUTURE_TOLERANCE
