"""NEM12, the Australian utilities' exchange format of interval readings, read exactly and with every fault by its line.

Records: 100 header, 200 channel (a register of a connection point), 300 one day of interval values, 400 quality of
ranges of the day above, 500 notes, 900 end. Days are in market time, UTC+10 without summer time. Values are taken as
pulses of 0.001 kWh each; one that is no whole number of them is an error, never rounded.
"""

import io
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Context, Decimal, Inexact
from typing import NamedTuple

from services.core.csv_table import Problem
from services.core.readings import MAX_VALUE

MARKET_TIME = timezone(timedelta(hours=10))
UNITS_PER_PULSE = Decimal("0.001")
"""kWh that one pulse of a channel's meter stands for."""
INTERVALS_MINUTES = (5, 15, 30)

_PULSES_PER_UNIT = {"WH": 1, "KWH": 1_000, "MWH": 1_000_000}
_VALUE = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)
_DAY = re.compile(r"(\d{4})(\d{2})(\d{2})", re.ASCII)
# Wide enough for every product of an admitted value.
_EXACT = Context(prec=60, traps=[Inexact])
_QUALITY = re.compile(r"[AEFNSV]\d{0,2}")
_NULL_QUALITY = "N"
_VARIABLE_QUALITY = "V"
_MINUTES_PER_DAY = 1440


class Channel(NamedTuple):
    """One register of a connection point (the National Metering Identifier)."""

    nmi: str
    suffix: str

    @property
    def name(self) -> str:
        """The name of the channel's meter."""
        return f"{self.nmi} {self.suffix}"


class ChannelDay(NamedTuple):
    """One 300 record: the pulses of each interval from `starts_at` on; None where the file says there is no data."""

    line: int
    channel: Channel
    starts_at: datetime
    interval_minutes: int
    pulses: tuple[int | None, ...]


class Nem12File(NamedTuple):
    """What of a file is sound, and what is not. The lines of `problems` are left out of `days`."""

    channels: tuple[Channel, ...]
    days: tuple[ChannelDay, ...]
    problems: tuple[Problem, ...]


class _Wrong(Exception):  # noqa: N818 - a verdict on one line that travels up a few calls, not an error
    """The line cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class _Block:
    """The 200 record in force; `channel` None: it was bad, and what stands under it is dropped with it."""

    line: int
    channel: Channel | None
    interval_minutes: int = 0
    pulses_per_unit: int = 0


@dataclass(slots=True)
class _Day:
    """A 300 record that 400 records may still qualify."""

    line: int
    block: _Block
    channel: Channel
    day: date
    pulses: list[int | None]
    is_variable: bool
    qualified: set[int]
    is_bad: bool = False


def parse_nem12(content: str) -> Nem12File:
    """Read a whole file. Never raises: what is wrong is in `problems`, ordered by line."""
    reader = _Reader()
    number = 0
    for number, text in enumerate(io.StringIO(content, newline=None), start=1):
        if text.strip():
            reader.take(number, text)
    return reader.finish(number)


class _Reader:
    """Follows the records of one file; each bad line becomes one problem."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._channels: dict[Channel, None] = {}
        self._days: dict[tuple[Channel, date], ChannelDay] = {}
        self._dropped_under: dict[int, int] = {}
        self._has_header = False
        self._has_ended = False
        self._block: _Block | None = None
        self._day: _Day | None = None
        self._day_is_bad = False

    def take(self, number: int, text: str) -> None:
        """Take the next line that is not blank."""
        fields = [field.strip() for field in text.split(",")]
        if not self._has_header and fields[0] != "100":
            self._problems.append(Problem(number, "the file must begin with a 100 record (100,NEM12,…)"))
            self._has_header = True  # said once
        try:
            self._dispatch(number, fields)
        except _Wrong as wrong:
            self._problems.append(Problem(number, str(wrong)))

    def finish(self, last_line: int) -> Nem12File:
        """Return the result once every line was taken."""
        self._close_day()
        if not self._has_ended:
            last = max(last_line, 1)
            self._problems.append(Problem(last, "the file ends here without its 900 record: it may have been cut off"))
        problems = [self._with_dropped(problem) for problem in sorted(self._problems)]
        return Nem12File(tuple(self._channels), tuple(self._days.values()), tuple(problems))

    def _dispatch(self, number: int, fields: list[str]) -> None:
        if self._has_ended:
            raise _Wrong("the file goes on after its 900 record, which is its end")
        indicator = fields[0]
        if indicator in {"100", "200", "300", "900"}:
            self._close_day()
        if indicator == "100":
            self._take_header(fields)
        elif indicator == "200":
            self._take_channel(number, fields)
        elif indicator == "300":
            self._take_day(number, fields)
        elif indicator == "400":
            self._take_quality(fields)
        elif indicator == "500":
            if self._day is None and not self._day_is_bad and not self._is_dropping:
                raise _Wrong("500 record without a 300 record before it")
        elif indicator == "900":
            self._has_ended = True
        else:
            raise _Wrong(f"unknown record {indicator[:20]!r}; a line begins with 100, 200, 300, 400, 500 or 900")

    def _with_dropped(self, problem: Problem) -> Problem:
        dropped = self._dropped_under.get(problem.line)
        if dropped is None:
            return problem
        return Problem(problem.line, f"{problem.message} (its {dropped} records of values go with it)")

    @property
    def _is_dropping(self) -> bool:
        return self._block is not None and self._block.channel is None

    def _take_header(self, fields: list[str]) -> None:
        if self._has_header:
            raise _Wrong("a second 100 record; a file has one, in its first line")
        self._has_header = True
        version = fields[1] if len(fields) > 1 else ""
        if version.upper() != "NEM12":
            raise _Wrong(f"100 record of {version!r}; only NEM12 (interval readings) can be read")

    def _take_channel(self, number: int, fields: list[str]) -> None:
        self._block = _Block(number, None)
        self._day_is_bad = False
        if len(fields) < 9:
            raise _Wrong(f"200 record with {len(fields)} fields, 9 at least are needed")
        nmi, suffix, unit, length = fields[1], fields[4], fields[7], fields[8]
        if not nmi or not suffix:
            raise _Wrong("200 record without " + ("an NMI (field 2)" if not nmi else "an NMI suffix (field 5)"))
        if len(nmi) + len(suffix) > 60:
            raise _Wrong("200 record whose NMI and suffix are longer than 60 characters")
        pulses_per_unit = _PULSES_PER_UNIT.get(unit.upper())
        if pulses_per_unit is None:
            raise _Wrong(f"200 record with the unit {unit!r}; allowed: kWh, Wh, MWh")
        if not length.isdecimal() or int(length) not in INTERVALS_MINUTES:
            allowed = ", ".join(map(str, INTERVALS_MINUTES))
            raise _Wrong(f"200 record with the interval length {length!r}; allowed minutes: {allowed}")
        channel = Channel(nmi, suffix)
        self._channels.setdefault(channel)
        self._block = _Block(number, channel, int(length), pulses_per_unit)

    def _take_day(self, number: int, fields: list[str]) -> None:
        self._day_is_bad = True  # until it is known to be sound
        block = self._block
        if block is None:
            raise _Wrong("300 record without a 200 record before it: whose values are they?")
        if block.channel is None:
            self._dropped_under[block.line] = self._dropped_under.get(block.line, 0) + 1
            return
        day = _parse_day(fields[1] if len(fields) > 1 else "")
        before = self._days.get((block.channel, day))
        if before is not None:
            raise _Wrong(f"channel {block.channel.name} has the day {day:%Y-%m-%d} twice: first in line {before.line}")
        values, quality = _split_day(fields[2:], block.interval_minutes)
        pulses: list[int | None] = list(_parse_values(values, block))
        if quality.startswith(_NULL_QUALITY):
            pulses = [None] * len(pulses)
        self._day_is_bad = False
        is_variable = quality.startswith(_VARIABLE_QUALITY)
        self._day = _Day(number, block, block.channel, day, pulses, is_variable, set())

    def _take_quality(self, fields: list[str]) -> None:
        day = self._day
        if day is None:
            if self._day_is_bad or self._is_dropping:
                return  # dropped with the line above
            raise _Wrong("400 record without a 300 record before it")
        try:
            first, last, quality = int(fields[1]), int(fields[2]), fields[3]
        except (IndexError, ValueError):
            day.is_bad = True
            raise _Wrong("400 record without first interval, last interval and quality") from None
        if not 1 <= first <= last <= len(day.pulses) or not _QUALITY.fullmatch(quality):
            day.is_bad = True
            raise _Wrong(
                f"400 record for the intervals {first} to {last} with quality {quality!r}; the day has the intervals "
                f"1 to {len(day.pulses)}, and qualities begin with A, E, F, N, S or V"
            )
        day.qualified.update(range(first, last + 1))
        if quality.startswith(_NULL_QUALITY):
            day.pulses[first - 1 : last] = [None] * (last - first + 1)

    def _close_day(self) -> None:
        """Take the day over: no further 400 record can follow."""
        day, self._day = self._day, None
        if day is None or day.is_bad:
            return
        if day.is_variable and len(day.qualified) < len(day.pulses):
            missing = next(place for place in range(1, len(day.pulses) + 1) if place not in day.qualified)
            message = f"the quality is V, but no 400 record below tells that of interval {missing}"
            self._problems.append(Problem(day.line, message))
            return
        starts_at = datetime(day.day.year, day.day.month, day.day.day, tzinfo=MARKET_TIME).astimezone(UTC)
        found = ChannelDay(day.line, day.channel, starts_at, day.block.interval_minutes, tuple(day.pulses))
        self._days[day.channel, day.day] = found


def _parse_day(text: str) -> date:
    found = _DAY.fullmatch(text)
    try:
        return date(*map(int, found.groups() if found else (0, 0, 0)))
    except ValueError:
        raise _Wrong(f"300 record with the date {text[:20]!r}, which is no day as YYYYMMDD") from None


def _split_day(fields: list[str], interval_minutes: int) -> tuple[list[str], str]:
    """Return the interval values and the quality that stands behind them."""
    expected = _MINUTES_PER_DAY // interval_minutes
    place = next((place for place, field in enumerate(fields) if _QUALITY.fullmatch(field)), None)
    if place is None:
        raise _Wrong(f"300 record without a quality (A, E, F, N, S or V) behind its {expected} interval values")
    if place != expected:
        raise _Wrong(f"300 record with {place} interval values; a day of {interval_minutes} minutes has {expected}")
    return fields[:place], fields[place]


def _parse_values(values: list[str], block: _Block) -> list[int]:
    pulses: list[int] = []
    wrong: list[str] = []
    for place, text in enumerate(values, start=1):
        try:
            pulses.append(_parse_value(text, block.pulses_per_unit))
        except _Wrong as reason:
            wrong.append(f"interval {place}: {reason}")
    if wrong:
        more = f" (and {len(wrong) - 1} more in this line)" if len(wrong) > 1 else ""
        raise _Wrong(wrong[0] + more)
    return pulses


def _parse_value(text: str, pulses_per_unit: int) -> int:
    if not _VALUE.fullmatch(text):
        if text.startswith("-") and _VALUE.fullmatch(text[1:]):
            raise _Wrong(f"the value {text[:40]} is negative")
        raise _Wrong(f"{text[:40]!r} is not a number" if text else "the value is empty")
    pulses = _EXACT.multiply(Decimal(text), Decimal(pulses_per_unit))
    whole = int(pulses)
    if whole != pulses:
        raise _Wrong(f"the value {text[:40]} is no whole number of pulses of 0.001 kWh")
    if whole > MAX_VALUE:
        raise _Wrong(f"the value {text[:40]} is larger than {MAX_VALUE} pulses of 0.001 kWh")
    return whole
