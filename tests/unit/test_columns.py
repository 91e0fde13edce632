"""Judging by the column says the same as judging one by one, whatever comes."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.columns import ColumnJudge, PlainTimes
from services.core.uploads import Origin
from tests.support.judging import REGISTRY, RETENTION, by_column, one_by_one
from tests.support.wire import ARRIVAL, reading, readings

uploads: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "device_id": st.sampled_from(["LG-1", "LG-2", "BR-1", "LG-404"]) | st.integers() | st.just(""),
        "sent_at": st.sampled_from(["2026-11-20T10:01:00Z", "yesterday", None]),
        "readings": st.lists(readings, max_size=5),
    }
)
payloads = st.one_of(
    uploads.map(lambda upload: json.dumps(upload).encode()),
    st.binary(max_size=60),
    st.just(b" " * 1_000_001),
)


@settings(max_examples=400)
@given(st.lists(payloads, max_size=6))
def test_columns_and_single_judgements_agree(some: list[bytes]) -> None:
    records = [(payload, Origin(1, 3, 17 + number, ARRIVAL)) for number, payload in enumerate(some)]
    assert by_column(records) == one_by_one(records)


def test_one_odd_reading_makes_only_its_own_record_slow() -> None:
    sound = {"device_id": "LG-2", "sent_at": "2026-11-20T10:01:00Z", "readings": [reading(), reading(input=2)]}
    odd = {**sound, "readings": [reading(), reading(interval_minutes=7)]}
    records = [(json.dumps(upload).encode(), Origin(1, 3, n, ARRIVAL)) for n, upload in enumerate([sound, odd, sound])]
    versions, refusals = by_column(records)
    assert sorted((version.source_offset, version.source_place) for version in versions) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (2, 0),
        (2, 1),
    ]
    assert [(origin.offset, refusal.place) for origin, refusal in refusals] == [(1, 1)]


def test_a_judge_that_was_finished_begins_anew() -> None:
    judge = ColumnJudge(REGISTRY, RETENTION, PlainTimes())
    record = {"device_id": "LG-2", "sent_at": "2026-11-20T10:01:00Z", "readings": [reading()]}
    for _round in range(2):
        judge.add(json.dumps(record).encode(), Origin(1, 3, 1, ARRIVAL))
        assert len(judge.finish().versions) == 1
    assert len(judge.finish().versions) == 0
