"""Which slots a backfill adds."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.core.schedule import Slot
from services.delivery.backfill import fill, first_kept
from services.delivery.model import Version
from services.delivery.planning import FilledWindows

DAY = datetime(2026, 11, 20, tzinfo=UTC)


def at(hour: int, minute: int = 0) -> datetime:
    return DAY + timedelta(hours=hour, minutes=minute)


def version(number: int, frequency: int, resolution: int, begins: datetime) -> Version:
    return Version(number, begins, "J", "meters_measurements", frequency, resolution, None, "https", {})


HOURLY = [version(1, 60, 15, at(10))]


def slots(*hours: int) -> list[Slot]:
    return [Slot(at(hour), at(hour + 1)) for hour in hours]


def test_every_slot_that_no_run_covers_and_no_other() -> None:
    filling = fill(Slot(at(6), at(12)), slots(8, 10), HOURLY, limit=100)
    assert [run.slot for run in filling.runs] == slots(6, 7, 9, 11)
    assert filling.planned_until == at(12)


def test_at_most_so_many_and_then_on_from_there() -> None:
    first = fill(Slot(at(6), at(12)), slots(8), HOURLY, limit=2)
    assert [run.slot for run in first.runs] == slots(6, 7)
    rest = fill(Slot(first.planned_until, at(12)), slots(6, 7, 8), HOURLY, limit=2)
    assert [run.slot for run in rest.runs] == slots(9, 10)
    assert fill(Slot(at(6), at(12)), [], HOURLY, limit=0) == ([], at(6))


def test_known_emptiness_needs_no_work_and_no_limit() -> None:
    filled = FilledWindows(15, [at(7, 15)], at(12))
    filling = fill(Slot(at(6), at(12)), [], HOURLY, limit=1, filled=filled)
    assert [(run.slot.start, run.state) for run in filling.runs][:2] == [(at(6), "empty"), (at(7), "planned")]


@given(
    st.integers(0, 95), st.integers(0, 95), st.sets(st.integers(0, 23), max_size=10), st.sampled_from([5, 15, 60, 1440])
)
def test_nothing_is_covered_twice_and_nothing_is_left_out(
    one: int, other: int, hours: set[int], frequency: int
) -> None:
    start, end = sorted((at(0, 15 * one), at(0, 15 * other)))
    versions = [version(1, frequency, 5 if frequency < 1440 else 15, at(0)), version(2, 15, 15, at(12))]
    taken = slots(*sorted(hours))
    filling = fill(Slot(start, end), taken, versions, limit=10_000)
    covered = [*taken, *(run.slot for run in filling.runs)]
    minutes = [
        slot.start + timedelta(minutes=n)
        for slot in covered
        for n in range(int((slot.end - slot.start).seconds / 60) or 1440)
    ]
    assert len(minutes) == len(set(minutes))
    wanted = {start + timedelta(minutes=n) for n in range(int((end - start).total_seconds() // 60))}
    assert wanted <= set(minutes)
    assert all(start <= run.slot.start < run.slot.end <= end for run in filling.runs)


def test_each_slot_is_kept_as_long_as_the_resolution_of_its_own_version_is() -> None:
    """Both ways round: what is coarse is kept longer than what is fine."""
    fine, coarse = version(1, 60, 5, at(0)), version(2, 60, 60, at(8))
    kept = {5: at(6), 60: at(2)}
    filling = fill(Slot(at(4), at(10)), [], [fine, coarse], limit=100, kept_from=kept)
    assert [run.slot for run in filling.runs] == slots(6, 7, 8, 9)
    coarse, fine = version(1, 60, 60, at(0)), version(2, 60, 5, at(4))
    filling = fill(Slot(at(0), at(8)), [], [coarse, fine], limit=100, kept_from=kept)
    assert [run.slot for run in filling.runs] == slots(2, 3, 6, 7)
    assert [run.version for run in filling.runs] == [1, 1, 2, 2]
    assert filling.planned_until == at(8)


def test_a_range_begins_with_the_first_slot_that_is_kept_by_its_own_version() -> None:
    coarse, fine = version(1, 60, 60, at(0)), version(2, 60, 5, at(4))
    wanted = Slot(at(1), at(8))
    assert first_kept(wanted, [coarse, fine], {5: at(6), 60: at(2, 30)}) == at(2)
    assert first_kept(wanted, [coarse, fine], {5: at(6), 60: at(5)}) == at(6)
    assert first_kept(wanted, [coarse, fine], {60: at(0)}) == at(1)
    assert first_kept(wanted, [coarse, fine], {60: at(4)}) is None
    assert first_kept(wanted, [coarse, fine], {5: at(8), 60: at(5)}) is None


def test_the_slot_in_which_the_platform_began_is_whole() -> None:
    filling = fill(Slot(at(6), at(8)), [], HOURLY, limit=100, kept_from={15: at(6, 45)})
    assert [run.slot for run in filling.runs] == slots(6, 7)
