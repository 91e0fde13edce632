"""What may be COPYed is surely new; nothing is planned twice or forgotten."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.core.columns import Columns
from services.core.readings import ReadingVersion
from services.ingest.write_plan import HighWaterMarks, WritePlan, merge_everything

T0 = datetime(2026, 11, 20, 23, 58, tzinfo=UTC)
Key = tuple[int, int]


def batch(keys: list[Key]) -> Columns:
    """Return readings of (meter, minute), in that order."""
    return Columns.of_versions(
        [
            ReadingVersion(T0 + timedelta(minutes=minute), T0, 1, place, meter_id, 0, 0, 0, 1, 1, False)
            for place, (meter_id, minute) in enumerate(keys)
        ]
    )


def keys_of(rows: Columns) -> list[Key]:
    start = int(T0.timestamp()) * 1_000_000
    minutes = ((rows.measured_us - start) // 60_000_000).tolist()
    return list(zip(rows.meter_id.tolist(), minutes, strict=True))


def new_keys(plan: WritePlan) -> list[Key]:
    return [key for _day, rows in plan.new_by_day for key in keys_of(rows)]


def test_a_meter_never_seen_is_merged_and_then_copied() -> None:
    marks = HighWaterMarks()
    assert keys_of(marks.plan(batch([(1, 0), (2, 0)])).to_merge) == [(1, 0), (2, 0)]
    plan = marks.plan(batch([(2, 1), (1, 1)]))
    assert new_keys(plan) == [(1, 1), (2, 1)]
    assert not len(plan.to_merge)


def test_corrections_repeats_and_gaps_filled_later_are_merged() -> None:
    marks = HighWaterMarks()
    marks.plan(batch([(1, 5), (2, 5)]))
    plan = marks.plan(batch([(1, 5), (1, 6), (2, 6), (2, 6), (2, 3)]))
    assert new_keys(plan) == [(1, 6)]
    assert sorted(keys_of(plan.to_merge)) == [(1, 5), (2, 3), (2, 6), (2, 6)]


def test_rows_are_grouped_by_day() -> None:
    marks = HighWaterMarks()
    marks.plan(batch([(1, 0)]))
    plan = marks.plan(batch([(1, 1), (1, 2), (1, 3)]))
    assert [(day.day, len(rows)) for day, rows in plan.new_by_day] == [(20, 1), (21, 2)]
    assert {day.day for day in plan.days} == {20, 21}


@given(st.lists(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=12), max_size=5))
def test_nothing_is_copied_twice_and_nothing_is_forgotten(batches: list[list[Key]]) -> None:
    marks, stored = HighWaterMarks(), set[Key]()
    for keys in batches:
        plan = marks.plan(batch(keys))
        new = new_keys(plan)
        assert len(new) == len(set(new))
        assert not stored & set(new)
        assert not set(new) & set(keys_of(plan.to_merge))
        assert sorted(new + keys_of(plan.to_merge)) == sorted(keys)
        stored |= set(keys)


def test_merging_everything_keeps_everything() -> None:
    plan = merge_everything(batch([(2, 1), (1, 1), (1, 0)]))
    assert keys_of(plan.to_merge) == [(1, 0), (1, 1), (2, 1)]
    assert not plan.new_by_day
