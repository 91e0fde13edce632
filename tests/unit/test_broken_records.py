"""Whatever the bytes: both ways of judging say the same, nothing crashes, and nobody's neighbour suffers."""

import json
from typing import Any

import msgspec
import pytest

from services.core.messages import RawUpload
from services.core.readings import MAX_RECORD_BYTES, MAX_RECORD_READINGS, RefusalReason
from services.core.uploads import Origin
from tests.support.judging import by_column, one_by_one
from tests.support.mutation import fuzzed_records
from tests.support.wire import ARRIVAL, reading

DEVICES = ("LG-1", "LG-2", "LG-2", "LG-404")
ORIGIN = Origin(1, 3, 17, ARRIVAL)
AT_A_TIME = 50


@pytest.mark.parametrize("seed", range(4))
def test_broken_records_get_the_same_verdict_by_the_column_as_one_by_one(seed: int) -> None:
    records = list(fuzzed_records(seed, 2000, DEVICES))
    stored = 0
    for first in range(0, len(records), AT_A_TIME):
        some = records[first : first + AT_A_TIME]
        at_offsets = [(record, ORIGIN._replace(offset=first + place)) for place, record in enumerate(some)]
        versions, refusals = by_column(at_offsets)
        assert (versions, refusals) == one_by_one(at_offsets)
        assert len(versions) + len(refusals) == sum(map(count_of, some))
        stored += len(versions)
    assert stored > 500, "hardly anything was sound enough to have a neighbour"


def count_of(record: bytes) -> int:
    """Return how many readings a record counts as: those in it, or one where they cannot be told apart."""
    if len(record) > MAX_RECORD_BYTES:
        return 1
    try:
        readings = msgspec.json.decode(record, type=RawUpload).readings
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 1
    return len(readings) if len(readings) <= MAX_RECORD_READINGS else 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (reading(measurement_time="0001-01-01T00:00:00+01:00"), RefusalReason.TOO_OLD),
        (reading(measurement_time="0001-01-01T00:00:00+23:59"), RefusalReason.TOO_OLD),
        (reading(measurement_time="9999-12-31T23:59:00-01:00"), RefusalReason.IN_FUTURE),
        ("MISSING", RefusalReason.SCHEMA_VIOLATION),
    ],
)
def test_times_that_utc_does_not_have_are_refused_and_their_neighbour_is_stored(
    broken: Any, reason: RefusalReason
) -> None:
    record = {"device_id": "LG-2", "sent_at": "2026-11-20T10:01:00Z", "readings": [reading(), broken]}
    verdicts = by_column([(json.dumps(record).encode(), ORIGIN)])
    assert verdicts == one_by_one([(json.dumps(record).encode(), ORIGIN)])
    assert len(verdicts[0]) == 1
    assert [refusal.reason for _origin, refusal in verdicts[1]] == [reason]


@pytest.mark.parametrize("name", ["measurement_time", r"measurement\u005ftime"])
def test_a_time_that_comes_twice_is_refused_when_either_is_bad(name: str) -> None:
    record = json.dumps({"device_id": "LG-2", "sent_at": "2026-11-20T10:01:00Z", "readings": [reading()]})
    twice = record.replace('{"input"', f'{{"{name}": "yesterday", "input"').encode()
    verdicts = by_column([(twice, ORIGIN)])
    assert verdicts == one_by_one([(twice, ORIGIN)])
    assert [refusal.reason for _origin, refusal in verdicts[1]] == [RefusalReason.SCHEMA_VIOLATION]
