"""Rendering ahead: a failure is over when it is over."""

from datetime import UTC, datetime, timedelta

from services.core.schedule import Slot
from services.delivery.model import JobKey, RowRange, Run, Version
from services.delivery.read_ahead import ReadAhead, Rendered

DAY = datetime(2026, 11, 20, tzinfo=UTC)
RUN = Run(JobKey(1, 1), Slot(DAY, DAY + timedelta(hours=1)), 1, 1, False, 0, DAY)
VERSION = Version(1, DAY, "Hourly", "meters_measurements", 60, 15, None, "sftp", {})
NEXT = RowRange(DAY, 5, 10)


async def test_what_fails_ahead_is_rendered_by_who_needs_it() -> None:
    asked: list[RowRange] = []

    async def render(_run: Run, _version: Version, following: RowRange) -> Rendered | None:
        asked.append(following)
        raise RuntimeError("a mistake")

    ahead = ReadAhead(render)
    ahead.note(RUN, Rendered(b"first", NEXT))
    ahead.taken(RUN, VERSION, b"first")
    await ahead.wait(RUN)
    await ahead.wait(RUN)
    # The place is given up: nothing is tried again by itself.
    ahead.taken(RUN, VERSION, b"first")
    await ahead.wait(RUN)
    assert asked == [NEXT]


async def test_the_next_parts_are_rendered_when_the_last_one_is_taken() -> None:
    async def render(_run: Run, _version: Version, following: RowRange) -> Rendered | None:
        return Rendered(b"second", None if following.first_meter_id > 5 else following._replace(first_meter_id=6))

    ahead = ReadAhead(render)
    ahead.note(RUN, Rendered(b"first", NEXT))
    ahead.taken(RUN, VERSION, b"another")
    ahead.taken(RUN, VERSION, b"first")
    await ahead.wait(RUN)
    ahead.taken(RUN, VERSION, b"second")
    await ahead.wait(RUN)
