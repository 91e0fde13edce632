"""`meterpost windows verify`: proves that closed windows hold what the readings say."""

import sys
import time
from typing import Annotated, Any

import typer

from services.cli.session import Session, command
from services.cli.show import Answer, Column, utc
from services.cli.window_options import From, Resolution, To, check_resolution, parse_range
from services.cli.windows import app
from services.core.plurals import counted
from services.core.windows import RESOLUTIONS_MINUTES
from services.windowing.verification import Difference, Step, verify

EXIT_DIFFERENT = 6
_LINE_EVERY_SECONDS = 5.0
_DIFFERENCES = (
    Column("Window", whole=True),
    Column("Min", number=True),
    Column("Meter", whole=True),
    Column("What", whole=True),
    Column("Expected"),
    Column("Found"),
)


class _Totals:
    """What was verified so far."""

    def __init__(self) -> None:
        self.windows = self.rows = self.unverifiable = self.dropped = self.difference_count = 0
        self.differences: list[Difference] = []

    def add(self, step: Step, tell_at_most: int) -> None:
        """Take over one stretch of windows."""
        self.windows += step.windows
        self.rows += step.rows
        self.unverifiable += step.unverifiable
        self.dropped += step.dropped
        self.difference_count += step.difference_count
        self.differences += step.differences[: tell_at_most - len(self.differences)]


@command(app, "verify", "database", "as_json")
async def verify_(
    session: Session,
    *,
    from_: From,
    to: To,
    resolution: Resolution = None,
    limit: Annotated[int, typer.Option(min=1, help="Tell at most so many differences.")] = 50,
) -> None:
    """Recompute closed windows from the readings and compare them with what was measured, recorded and hashed.

    Counts what had arrived up to each window's cut-off, by the catalog as it was then. Ends with exit code 6 where
    anything differs. Changes nothing.
    """
    start, end = parse_range(from_, to)
    check_resolution(resolution)
    totals = _Totals()
    progress = _Progress(session.answer)
    async with session.pool() as pool:
        for minutes in (resolution,) if resolution else RESOLUTIONS_MINUTES:
            async for step in verify(pool, minutes, start, end, limit):
                totals.add(step, limit)
                progress.tell(minutes, step, totals)
    if session.answer.as_json:
        session.answer.json(
            {
                "windows": totals.windows,
                "rows": totals.rows,
                "unverifiable_windows": totals.unverifiable,
                "dropped_windows": totals.dropped,
                "difference_count": totals.difference_count,
                "differences": [one._asdict() for one in totals.differences],
            }
        )
    else:
        _tell(session.answer, totals)
    if totals.difference_count:
        raise typer.Exit(EXIT_DIFFERENT)


def _tell(answer: Answer, totals: _Totals) -> None:
    if totals.differences:
        answer.table(_DIFFERENCES, [_line(one) for one in totals.differences])
        if totals.difference_count > len(totals.differences):
            answer.note(f"{len(totals.differences):,} of {totals.difference_count:,} differences shown (--limit)")
    if totals.dropped:
        answer.say(
            f"{counted(totals.dropped, 'window')} cannot be verified: {_whose(totals.dropped)} rows were dropped by "
            "retention (`meterpost windows status`)."
        )
    if totals.unverifiable:
        whose = _whose(totals.unverifiable)
        answer.say(
            f"{counted(totals.unverifiable, 'window')} cannot be recomputed, {whose} readings are no longer kept: "
            f"{whose} rows were compared with the number and SHA-256 recorded at the close"
            f"{'.' if totals.differences else ': equal.'}"
        )
    if not (totals.windows or totals.differences or totals.dropped or totals.unverifiable):
        answer.say("Nothing was verified: no window there is closed and holds anything (`meterpost windows status`).")
        return
    differences = counted(totals.difference_count, "difference")
    if totals.windows:
        verified = f"{counted(totals.windows, 'window')} with {counted(totals.rows, 'row')} verified"
        answer.say(f"{verified}: {differences}." if totals.differences else f"{verified}: equal.")
    elif totals.differences:
        answer.say(f"In all: {differences}.")


def _whose(windows: int) -> str:
    return "its" if windows == 1 else "their"


def _line(one: Difference) -> tuple[object, ...]:
    expected, found = one.expected, one.found
    if expected is not None and found is not None:  # only what differs
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        expected, found = ({name: side.get(name) for name in names} for side in (expected, found))
    meter = None if one.meter_id is None else str(one.meter_id)
    return one.window_start, one.resolution_minutes, meter, one.what, _pairs(expected), _pairs(found)


def _pairs(values: dict[str, Any] | None) -> str:
    return "nothing" if values is None else ", ".join(f"{name} {value}" for name, value in values.items())


class _Progress:
    """A line on standard error now and then, nothing beside JSON."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._last_line = time.monotonic()

    def tell(self, resolution: int, step: Step, totals: _Totals) -> None:
        """Say how far verification has come, not too often."""
        every = _LINE_EVERY_SECONDS if sys.stderr.isatty() else 2 * _LINE_EVERY_SECONDS
        if self._answer.as_json or time.monotonic() - self._last_line < every:
            return
        self._last_line = time.monotonic()
        self._answer.note(
            f"{resolution} min: to {utc(step.until)}; {counted(totals.windows, 'window')}, "
            f"{counted(totals.rows, 'row')}, {counted(totals.difference_count, 'difference')} so far"
        )
