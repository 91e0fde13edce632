"""When catalogs are due: by the platform's clock, a day at a time, whatever the windows do."""

from datetime import UTC, datetime, timedelta

import pytest

from services.core.schedule import NO_RESOLUTION, Slot, check_schedule, first_slot, next_slot
from services.delivery.backfill import fill
from services.delivery.model import Job, JobKey, Pause, Version
from services.delivery.planning import FilledWindows, first_plan, plan
from services.delivery.requests import ended_early

DAY = datetime(2026, 11, 20, tzinfo=UTC)
VERSION = Version(1, DAY, "Assets", "catalog", 1440, NO_RESOLUTION, None, "https", {})


def at(hour: int, minute: int = 0, *, day: int = 0) -> datetime:
    return DAY + timedelta(days=day, hours=hour, minutes=minute)


def clock(instant: datetime) -> dict[int, datetime]:
    """Return up to where slots are due; windows are far behind."""
    return {NO_RESOLUTION: instant, 1: at(0, day=-9), 60: at(0, day=-9)}


def day(number: int) -> Slot:
    return Slot(at(0, day=number), at(24, day=number))


@pytest.mark.parametrize(
    ("data", "frequency", "resolution", "said"),
    [
        ("catalog", 60, None, "a catalog is exported once a day; allowed frequency: day"),
        ("catalog", 60, 60, "a catalog is exported once a day; allowed frequency: day"),
        ("catalog", 1440, 60, "a catalog has no windows and so no resolution; leave the resolution out"),
        (
            *("meters_measurements", 1440, None),
            "measurements need a resolution; allowed in minutes with the frequency day: 15, 60",
        ),
        ("meters_measurements", 7, None, "no export frequency has 7 minutes; allowed: day, hour, 15min, 5min"),
    ],
)
def test_what_is_refused_says_what_is_allowed(data: str, frequency: int, resolution: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|leave") as caught:
        check_schedule(data, frequency, resolution)
    assert str(caught.value) == said


def test_what_is_allowed() -> None:
    check_schedule("catalog", 1440, None)
    check_schedule("catalog", 1440, NO_RESOLUTION)
    check_schedule("meters_measurements", 1440, 60)


def test_the_first_slot_is_the_day_in_which_the_job_begins() -> None:
    assert first_slot(at(15, 7), 1440, is_catalog=True) == day(0)
    assert first_slot(at(0), 1440, is_catalog=True) == day(0)
    found = first_plan(at(15, 7), {NO_RESOLUTION: at(12, day=-1)}, [VERSION])
    assert found is not None
    assert (found.next_slot, list(found.runs)) == (day(0), [])


def test_no_slot_is_before_the_day_before_the_first_window() -> None:
    found = first_plan(at(0, day=-900), {NO_RESOLUTION: at(12, day=-1)}, [VERSION])
    assert found is not None
    assert found.next_slot == day(-1)
    assert first_plan(at(15), {1: at(9)}, [VERSION]) is None


def test_a_slot_is_due_when_it_is_over_and_no_window_is_waited_for() -> None:
    assert plan(at(0), [VERSION], [], clock(at(23, 59)), limit=10).runs == []
    found = plan(at(0), [VERSION], [], clock(at(0, day=2)), limit=10)
    assert [run.slot for run in found.runs] == [day(0), day(1)]
    assert not found.is_next_due
    assert [run.state for run in plan(at(0), [VERSION], [Pause(at(0), at(1))], clock(at(0, day=2)), 10).runs] == [
        "skipped",
        "planned",
    ]


def test_run_now_ends_the_day_at_the_minute_and_the_rest_goes_on_to_midnight() -> None:
    key = JobKey(1, 1)

    def early(now: datetime, planned_until: datetime) -> Slot | None:
        job = Job(key, False, planned_until, 1, [VERSION], [], clock(now), 0)
        found = ended_early(job, plan(planned_until, [VERSION], [], clock(now), limit=10))
        if found is None:
            return None
        assert found.next_slot == Slot(found.runs[0].slot.end, at(24))
        return found.runs[0].slot

    assert early(at(15, 1) + timedelta(seconds=59), at(0)) == Slot(at(0), at(15, 1))
    assert early(at(15, 2), at(15, 1)) == Slot(at(15, 1), at(15, 2))
    assert early(at(15, 1) + timedelta(seconds=59), at(15, 1)) is None
    assert next_slot(at(15, 1) + timedelta(seconds=1), 1440, NO_RESOLUTION) == Slot(at(15, 2), at(24))


def test_empty_windows_say_nothing_of_catalogs() -> None:
    nothing = FilledWindows(NO_RESOLUTION, [], at(0, day=9))
    filling = fill(Slot(at(0), at(0, day=3)), [day(1)], [VERSION], limit=10, filled=nothing)
    assert [(run.slot, run.state) for run in filling.runs] == [(day(0), "planned"), (day(2), "planned")]
