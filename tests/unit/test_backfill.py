"""Which slots a backfill adds."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.core.schedule import Slot
from services.delivery.backfill import fill
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
