"""Slots, and which runs of a job are due."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.core.schedule import ALLOWED_RESOLUTIONS_MINUTES, Slot, check_pair, first_slot, is_due, next_slot, slot_at
from services.core.times import ceil_to
from services.delivery.model import Pause, Version
from services.delivery.planning import FilledWindows, Plan, PlannedRun, first_plan, in_force, plan

DAY = datetime(2026, 11, 20, tzinfo=UTC)
PAIRS = [(frequency, r) for frequency, allowed in ALLOWED_RESOLUTIONS_MINUTES.items() for r in allowed]
INSTANTS = st.datetimes(datetime(2019, 1, 1), datetime(2031, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def at(hour: int, minute: int = 0, *, day: int = 0) -> datetime:
    return DAY + timedelta(days=day, hours=hour, minutes=minute)


def version(number: int, effective_from: datetime, frequency: int, resolution: int) -> Version:
    return Version(
        number, effective_from, "job", "meters_measurements", frequency, resolution, None, "https", {"url": "https://a"}
    )


def closed(until: datetime) -> dict[int, datetime]:
    return dict.fromkeys((1, 5, 15, 60), until)


def slots(found: Plan) -> list[tuple[datetime, datetime, int]]:
    return [(*run.slot, run.version) for run in found.runs]


def test_there_are_ten_legal_pairs() -> None:
    assert sorted(PAIRS) == [
        (5, 1), (5, 5), (15, 1), (15, 5), (15, 15), (60, 5), (60, 15), (60, 60), (1440, 15), (1440, 60),
    ]  # fmt: skip
    for pair in PAIRS:
        check_pair(*pair)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ((1440, 5), "a resolution of 5 min does not go with the frequency day; allowed resolutions in minutes: 15, 60"),
        ((5, 15), "a resolution of 15 min does not go with the frequency 5min; allowed resolutions in minutes: 1, 5"),
        ((30, 5), "no export frequency has 30 minutes; allowed: day, hour, 15min, 5min"),
    ],
)
def test_other_pairs_are_refused_with_what_is_allowed(pair: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"allowed") as caught:
        check_pair(*pair)
    assert str(caught.value) == sentence


def test_slots_are_aligned_to_utc() -> None:
    assert slot_at(at(10, 7), 1440) == Slot(at(0), at(24))
    assert slot_at(at(10, 7), 15) == Slot(at(10), at(10, 15))
    assert slot_at(at(10, 15), 15) == Slot(at(10, 15), at(10, 30))


def test_the_first_slot_begins_at_or_after_the_start() -> None:
    assert first_slot(at(10), 60) == Slot(at(10), at(11))
    assert first_slot(at(10) + timedelta(microseconds=1), 60) == Slot(at(11), at(12))


def test_a_slot_is_due_when_its_last_window_is_closed() -> None:
    slot = Slot(at(10), at(11))
    assert not is_due(slot, None)
    assert not is_due(slot, at(10, 59))
    assert is_due(slot, at(11))


@given(instant=INSTANTS, pair=st.sampled_from(PAIRS))
def test_next_slots_follow_without_gap_and_hold_whole_windows(instant: datetime, pair: tuple[int, int]) -> None:
    frequency, resolution = pair
    first = next_slot(instant, frequency, resolution)
    second = next_slot(first.end, frequency, resolution)
    assert second == Slot(first.end, first.end + timedelta(minutes=frequency))
    assert instant <= first.start < instant + timedelta(minutes=resolution)
    assert (first.end - first.start) % timedelta(minutes=resolution) == timedelta()


def test_a_new_job_leaves_out_what_was_before_the_first_window_but_not_its_slot() -> None:
    versions = [version(1, at(0, day=-900), 60, 15)]
    found = first_plan(at(0, day=-900), {15: at(9, 45)}, versions)
    assert found is not None
    assert found.next_slot == Slot(at(9), at(10))


def test_a_job_that_starts_later_than_the_first_window_begins_with_its_own_start() -> None:
    found = first_plan(at(12, 1), {15: at(9, 45)}, [version(1, at(12, 1), 60, 15)])
    assert found is not None
    assert found.next_slot == Slot(at(13), at(14))


def test_a_job_waits_while_no_window_of_its_resolution_was_closed() -> None:
    assert first_plan(at(12), {1: at(9)}, [version(1, at(12), 60, 15)]) is None


def test_due_runs_are_planned_oldest_first_and_so_many_at_a_time() -> None:
    versions = [version(1, at(0), 5, 5)]
    found = plan(at(0), versions, [], closed(at(1, 3)), limit=10)
    assert slots(found) == [(at(0, 5 * n), at(0, 5 * n + 5), 1) for n in range(10)]
    assert found.is_next_due
    rest = plan(found.next_slot.start, versions, [], closed(at(1, 3)), limit=10)
    assert slots(rest) == [(at(0, 50), at(0, 55), 1), (at(0, 55), at(1), 1)]
    assert not rest.is_next_due
    assert rest.next_slot == Slot(at(1), at(1, 5))


def test_slots_that_begin_inside_a_pause_are_skipped() -> None:
    pauses = [Pause(at(1, 1), at(3)), Pause(at(5), None)]
    found = plan(at(0), [version(1, at(0), 60, 60)], pauses, closed(at(7)), limit=100)
    assert [run.state == "skipped" for run in found.runs] == [False, False, True, False, False, True, True]


def test_an_edit_takes_effect_with_the_next_slot() -> None:
    versions = [version(1, at(0), 60, 60), version(2, at(1, 30), 60, 15), version(3, at(3), 60, 5)]
    found = plan(at(0), versions, [], closed(at(4)), limit=100)
    assert [run.version for run in found.runs] == [1, 1, 2, 3]


def test_a_change_to_a_higher_frequency_leaves_no_gap_and_no_overlap() -> None:
    versions = [version(1, at(0), 1440, 60), version(2, at(10), 60, 60)]
    found = plan(at(0), versions, [], closed(at(26)), limit=100)
    assert slots(found) == [(at(0), at(24), 1), (at(24), at(25), 2), (at(25), at(26), 2)]


def test_a_change_to_a_lower_frequency_begins_with_a_shorter_slot_that_fills_the_gap() -> None:
    versions = [version(1, at(0), 60, 15), version(2, at(10, 30), 1440, 15)]
    found = plan(at(9), versions, [], closed(at(48)), limit=100)
    assert slots(found) == [
        (at(9), at(10), 1), (at(10), at(11), 1), (at(11), at(24), 2), (at(24), at(48), 2),
    ]  # fmt: skip


def test_a_change_to_a_coarser_resolution_begins_with_its_next_window() -> None:
    versions = [version(1, at(0), 5, 5), version(2, at(0, 2), 60, 15)]
    found = plan(at(0), versions, [], closed(at(2)), limit=100)
    assert slots(found) == [(at(0), at(0, 5), 1), (at(0, 15), at(1), 2), (at(1), at(2), 2)]


@given(
    pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=4),
    hours=st.lists(st.integers(0, 72 * 12), min_size=4, max_size=4),
    limit=st.integers(1, 50),
)
@example(pairs=[(15, 1), (1440, 60), (1440, 15)], hours=[0, 1, 4, 4], limit=1)
def test_planning_step_by_step_never_overlaps(pairs: list[tuple[int, int]], hours: list[int], limit: int) -> None:
    """Whatever edits there are and however small the steps: slots are disjoint, ordered, and made of whole windows."""
    changes = sorted(hours)[: len(pairs)]
    versions = [
        version(n, at(0, 5 * change), *pair) for n, (change, pair) in enumerate(zip(changes, pairs, strict=True), 1)
    ]
    until, runs = at(0), []
    while True:
        found = plan(until, versions, [], closed(at(72)), limit)
        runs += slots(found)
        until = found.next_slot.start
        if not found.is_next_due:
            break
    assert [(start, end) for start, end, _ in runs] == sorted({(start, end) for start, end, _ in runs})
    for (_, end, _), (start, _, number) in itertools.pairwise(runs):
        # Until a whole window of the version that came into force first; another may follow it meanwhile.
        longest = max(in_force(versions, end).resolution_minutes, versions[number - 1].resolution_minutes)
        assert timedelta() <= start - end < timedelta(minutes=longest)


@given(
    pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=4),
    asked_at=st.lists(st.integers(0, 72 * 12), min_size=4, max_size=4),
    limit=st.integers(1, 50),
)
def test_edits_as_jobs_take_them_leave_no_gap(pairs: list[tuple[int, int]], asked_at: list[int], limit: int) -> None:
    """A new version begins with a slot of the old frequency and of its own."""
    versions = [version(1, at(0), *pairs[0])]
    for number, (change, pair) in enumerate(zip(sorted(asked_at), pairs[1:], strict=False), 2):
        before = versions[-1]
        longest = timedelta(minutes=max(before.frequency_minutes, pair[0]))
        versions.append(version(number, ceil_to(max(at(0, 5 * change), before.effective_from), longest), *pair))
    until, runs = at(0), []
    while True:
        found = plan(until, versions, [], closed(at(24 * 8)), limit)
        runs += slots(found)
        until = found.next_slot.start
        if not found.is_next_due:
            break
    assert runs[0][0] == at(0)
    assert all(end == start for (_, end, _), (start, _, _) in itertools.pairwise(runs))


@given(
    pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3),
    steps=st.lists(st.integers(0, 48 * 12), min_size=7, max_size=7),
    windows=st.sets(st.integers(0, 48 * 60 - 1), max_size=20),
    reach_minutes=st.integers(1440, 4_000),
    limit=st.integers(1, 20),
)
def test_knowing_which_windows_are_filled_changes_no_run_but_decides_the_empty_ones(
    pairs: list[tuple[int, int]], steps: list[int], windows: set[int], reach_minutes: int, limit: int
) -> None:
    """As planning slot by slot, whatever edits and pauses there are, and however far the knowledge reaches."""
    changes = sorted(steps[: len(pairs)])
    versions = [
        version(n, at(0, 5 * change), *pair) for n, (change, pair) in enumerate(zip(changes, pairs, strict=True), 1)
    ]
    ends = sorted(steps[3:])
    pauses = [Pause(at(0, 5 * ends[0]), at(0, 5 * ends[1])), Pause(at(0, 5 * ends[2]), at(0, 5 * ends[3]))]
    one_by_one = plan(at(0), versions, pauses, closed(at(48)), limit=100_000)
    until = at(0)
    runs: list[PlannedRun] = []
    while True:
        resolution = in_force(versions, until).resolution_minutes
        starts = sorted({at(0, minute // resolution * resolution) for minute in windows})
        reach = min(until + timedelta(minutes=reach_minutes), at(48))
        filled = FilledWindows(resolution, [start for start in starts if until <= start < reach], reach)
        found = plan(until, versions, pauses, closed(at(48)), limit, filled)
        assert sum(run.state == "planned" for run in found.runs) <= limit
        runs += found.runs
        until = found.next_slot.start
        if not found.is_next_due:
            break
    assert [run._replace(state="planned") for run in runs] == [run._replace(state="planned") for run in one_by_one.runs]
    assert found.next_slot == one_by_one.next_slot
    for run, expected in zip(runs, one_by_one.runs, strict=True):
        slot = run.slot
        resolution = versions[run.version - 1].resolution_minutes
        has_rows = any(slot.start <= at(0, minute // resolution * resolution) < slot.end for minute in windows)
        if expected.state == "skipped" or has_rows:
            assert run.state == expected.state
        elif len(pairs) == 1:
            assert run.state == "empty"


def test_a_catalog_export_is_never_empty_for_lack_of_measurements() -> None:
    catalog = version(1, at(0), 1440, 60)._replace(data="catalog")
    found = plan(at(0), [catalog], [], closed(at(48)), 100, FilledWindows(60, [], at(48)))
    assert [run.state for run in found.runs] == ["planned", "planned"]
