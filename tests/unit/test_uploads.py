"""Each reading of a record is stored or refused with its reason; neighbours never suffer."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.readings import MAX_VALUE, WHOLE_RECORD, RefusalReason, SourceTopic
from services.core.uploads import JudgedUpload, Origin, judge_upload
from tests.support.wire import ARRIVAL, reading, readings, small_registry

RETENTION = timedelta(days=92)
ORIGIN = Origin(SourceTopic.LOGGER.value, 3, 17, ARRIVAL)
REGISTRY = small_registry()


def judge(*readings: Any, device_id: Any = "LG-1") -> JudgedUpload:
    record = {"device_id": device_id, "sent_at": "2026-11-20T10:01:00Z", "readings": list(readings)}
    return judge_upload(json.dumps(record).encode(), ORIGIN, REGISTRY, RETENTION)


def reason_of(judged: JudgedUpload) -> RefusalReason:
    assert not judged.versions
    [refusal] = judged.refusals
    return refusal.reason


def test_a_sound_reading_is_stored_with_its_whole_origin() -> None:
    [version] = judge(reading(revision=7)).versions
    assert version.meter_id == 2
    assert version.value == 42
    assert not version.is_register
    assert version.order == (7, ARRIVAL, 1, 3, 17, 0)


def test_a_bridge_names_the_meter_and_may_send_its_register() -> None:
    sent = reading(input=None, meter_id=3, pulses=None, register=918273)
    [version] = judge(sent, device_id="BR-1").versions
    assert (version.meter_id, version.value, version.is_register) == (3, 918273, True)


def test_an_input_that_moved_counts_for_the_meter_of_that_time() -> None:
    before = reading(measurement_time="2026-11-20T08:59:00Z")
    after = reading(measurement_time="2026-11-20T09:00:00Z")
    assert [version.meter_id for version in judge(before, after).versions] == [1, 2]


CASES = [
    (reading(interval_minutes=7), RefusalReason.BAD_INTERVAL),
    (reading(measurement_time="2026-11-20T10:00:30Z"), RefusalReason.UNALIGNED_TIME),
    (reading(measurement_time="2026-11-20T09:55:00Z", interval_minutes=30), RefusalReason.UNALIGNED_TIME),
    (reading(pulses=-1), RefusalReason.NEGATIVE_VALUE),
    (reading(pulses=MAX_VALUE + 1), RefusalReason.VALUE_OUT_OF_RANGE),
    (reading(pulses=2**80), RefusalReason.VALUE_OUT_OF_RANGE),
    (reading(revision=-1), RefusalReason.VALUE_OUT_OF_RANGE),
    (reading(revision=2**31), RefusalReason.VALUE_OUT_OF_RANGE),
    (reading(measurement_time="2026-11-20T10:07:00Z"), RefusalReason.IN_FUTURE),
    (reading(measurement_time="2026-08-20T10:00:00Z"), RefusalReason.TOO_OLD),
    (reading(input=9), RefusalReason.UNKNOWN_INPUT),
    (reading(input=2), RefusalReason.NOT_ATTACHED),
    (reading(input=None, meter_id=999), RefusalReason.UNKNOWN_METER),
    (reading(input=None, meter_id=3), RefusalReason.NOT_ATTACHED),
    (reading(meter_id=3), RefusalReason.SCHEMA_VIOLATION),
    (reading(input=None), RefusalReason.SCHEMA_VIOLATION),
    (reading(register=1), RefusalReason.SCHEMA_VIOLATION),
    (reading(pulses=None), RefusalReason.SCHEMA_VIOLATION),
    (reading(pulses="42"), RefusalReason.SCHEMA_VIOLATION),
    (reading(pulses=True), RefusalReason.SCHEMA_VIOLATION),
    (reading(pulses=0.5), RefusalReason.SCHEMA_VIOLATION),
    (reading(measurement_time="2026-11-20T10:00:00"), RefusalReason.SCHEMA_VIOLATION),
    (reading(measurement_time=5), RefusalReason.SCHEMA_VIOLATION),
    (reading(measurement_time=None), RefusalReason.SCHEMA_VIOLATION),
    ("nonsense", RefusalReason.SCHEMA_VIOLATION),
    (None, RefusalReason.SCHEMA_VIOLATION),
]


@pytest.mark.parametrize(("bad", "reason"), CASES)
def test_a_bad_reading_is_refused_with_its_reason_and_its_neighbours_are_stored(bad: Any, reason: str) -> None:
    judged = judge(reading(), bad, reading(measurement_time="2026-11-20T09:59:00Z"))
    assert [version.source_place for version in judged.versions] == [0, 2]
    [refusal] = judged.refusals
    assert (refusal.place, refusal.reason) == (1, reason)
    assert json.loads(refusal.original) == bad
    assert refusal.device_id == "LG-1"


def test_the_bounds_themselves_are_accepted() -> None:
    edge_of_future = reading(measurement_time="2026-11-20T10:06:00Z")
    oldest = reading(measurement_time=(ARRIVAL - RETENTION + timedelta(seconds=58)).isoformat())
    judged = judge(edge_of_future, oldest, reading(pulses=MAX_VALUE), reading(revision=2**31 - 1), reading(pulses=0))
    assert not judged.refusals


def test_an_unknown_device_is_named() -> None:
    [refusal] = judge(reading(), device_id="LG-404").refusals
    assert refusal.reason == RefusalReason.UNKNOWN_DEVICE
    assert "LG-404" in refusal.detail


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", RefusalReason.MALFORMED),
        (b"not json", RefusalReason.MALFORMED),
        (b"\xff\xfe\x00", RefusalReason.MALFORMED),
        (b"[" * 200_000, RefusalReason.SCHEMA_VIOLATION),
        (b'{"a":' * 100_000, RefusalReason.MALFORMED),
        (b"[]", RefusalReason.SCHEMA_VIOLATION),
        (b'{"device_id": 5, "sent_at": "2026-11-20T10:01:00Z", "readings": []}', RefusalReason.SCHEMA_VIOLATION),
        (b'{"device_id": "LG-1", "readings": []}', RefusalReason.SCHEMA_VIOLATION),
        (b" " * 1_000_001, RefusalReason.TOO_LARGE),
    ],
    ids=["empty", "text", "binary", "deep", "deep-object", "array", "device-number", "no-sent-at", "megabytes"],
)
def test_a_record_that_cannot_be_read_is_refused_as_a_whole(payload: bytes, reason: RefusalReason) -> None:
    judged = judge_upload(payload, ORIGIN, REGISTRY, RETENTION)
    assert reason_of(judged) in {reason, RefusalReason.MALFORMED}
    assert judged.refusals[0].place == WHOLE_RECORD
    assert judged.refusals[0].original == payload


def test_a_thousand_readings_fit_and_one_more_does_not() -> None:
    many = [reading(measurement_time=f"2026-11-20T{n // 60:02}:{n % 60:02}:00Z") for n in range(500)] * 2
    assert len(judge(*many).versions) == 1000
    assert reason_of(judge(*many, reading())) == RefusalReason.TOO_LARGE


def test_unknown_fields_are_ignored() -> None:
    assert len(judge(reading(firmware="1.2", nested={"a": [1]})).versions) == 1


@given(payload=st.binary(max_size=400))
def test_no_bytes_whatever_crash(payload: bytes) -> None:
    judged = judge_upload(payload, ORIGIN, REGISTRY, RETENTION)
    assert len(judged.versions) + len(judged.refusals) >= 0


@given(some=st.lists(readings, max_size=6))
def test_every_reading_ends_as_one_version_or_one_refusal(some: list[Any]) -> None:
    judged = judge(*some)
    places = [version.source_place for version in judged.versions] + [refusal.place for refusal in judged.refusals]
    assert sorted(places) == list(range(len(some)))
