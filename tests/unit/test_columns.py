"""Judging by the column says the same as judging one by one, whatever comes."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.columns import ColumnJudge, Columns, PlainTimes
from services.core.readings import ReadingVersion, Refusal
from services.core.times import from_epoch_microseconds
from services.core.uploads import Origin, judge_upload
from tests.support.wire import ARRIVAL, reading, readings, small_registry

RETENTION = timedelta(days=92)
REGISTRY = small_registry()
TIMES = PlainTimes()

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


def versions_of(columns: Columns) -> list[ReadingVersion]:
    rows = zip(*(array.tolist() for array in columns.arrays()), strict=True)
    return [
        ReadingVersion._make(
            [from_epoch_microseconds(row[0]), from_epoch_microseconds(row[1]), *row[2:10], bool(row[10])]
        )
        for row in rows
    ]


def one_by_one(records: Sequence[tuple[bytes, Origin]]) -> tuple[set[ReadingVersion], set[tuple[Origin, Refusal]]]:
    versions: set[ReadingVersion] = set()
    refusals: set[tuple[Origin, Refusal]] = set()
    for payload, origin in records:
        judged = judge_upload(payload, origin, REGISTRY, RETENTION)
        versions.update(judged.versions)
        refusals.update((origin, refusal) for refusal in judged.refusals)
    return versions, refusals


def by_column(records: Sequence[tuple[bytes, Origin]]) -> tuple[list[ReadingVersion], list[tuple[Origin, Refusal]]]:
    judge = ColumnJudge(REGISTRY, RETENTION, TIMES)
    for payload, origin in records:
        judge.add(payload, origin)
    versions, refusals = judge.finish()
    return versions_of(versions), refusals


@settings(max_examples=400)
@given(st.lists(payloads, max_size=6))
def test_columns_and_single_judgements_agree(some: list[bytes]) -> None:
    records = [(payload, Origin(1, 3, 17 + number, ARRIVAL)) for number, payload in enumerate(some)]
    versions, refusals = by_column(records)
    assert (set(versions), set(refusals)) == one_by_one(records)
    assert len(versions) == len(set(versions))
    assert len(refusals) == len(set(refusals))


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
