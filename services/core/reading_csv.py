"""CSV of readings, in two shapes, exactly and with every fault by its line. Pure.

1. Of many meters: meter, measurement_time, interval_minutes, one of pulses | register | kwh | value, and where wanted
   revision. `meter` is a name or an id; `kwh` and `value` are amounts, `value` in the meter's own unit.
2. Of one meter, which the caller names: start, value (an amount in the meter's unit), all of one interval length.

Times are starts of intervals, ISO 8601 with their zone. Amounts become pulses; one that is no whole number of pulses is
an error unless rounding is asked for (binary noise such as 0.028999999999999998).
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from enum import StrEnum
from typing import NamedTuple

from services.core.csv_table import Problem, Table, TableRow, exact_number, whole_number
from services.core.readings import INTERVALS_MINUTES, MAX_INT32, MAX_VALUE
from services.core.times import EPOCH, iso_seconds, parse_instant

_WIDE = Context(prec=120, rounding=ROUND_HALF_UP)
_AMOUNT_COLUMNS = ("pulses", "register", "kwh", "value")


class AmountKind(StrEnum):
    """What the number of a line counts."""

    PULSES = "pulses"
    REGISTER = "register"
    KWH = "kwh"
    UNITS = "value"
    """In the meter's own unit."""


class CsvReading(NamedTuple):
    """One line. `meter` is a name or an id as the file has it."""

    line: int
    meter: str
    measured_at: datetime
    interval_minutes: int
    kind: AmountKind
    amount: Decimal
    revision: int


class ReadingFile(NamedTuple):
    """What of a file is sound, and what is not."""

    readings: tuple[CsvReading, ...]
    problems: tuple[Problem, ...]


def parse_reading_csv(text: str, *, meter: str | None = None, interval_minutes: int | None = None) -> ReadingFile:
    """Read a whole file. Never raises: what is wrong is in `problems`, ordered by line.

    `meter` and `interval_minutes` stand in for columns that the file does not have.
    """
    required = ["start"] if _is_household(text) else ["measurement_time"]
    optional = [*_AMOUNT_COLUMNS, "revision"]
    (required if meter is None else optional).append("meter")
    (required if interval_minutes is None else optional).append("interval_minutes")
    table = Table(text, required, optional)
    amounts = [name for name in _AMOUNT_COLUMNS if name in table.columns]
    if table.columns and not amounts:
        return ReadingFile((), (Problem(1, f"the header line names none of {', '.join(_AMOUNT_COLUMNS)}"),))
    readings: list[CsvReading] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, datetime, int], int] = {}
    for row in table.rows():
        try:
            reading = _read(row, amounts, meter, interval_minutes)
            before = seen.setdefault((reading.meter, reading.measured_at, reading.revision), row.line)
            if before != row.line:
                fault = f"meter {reading.meter} has {iso_seconds(reading.measured_at)} already in line {before}"
                problems.append(Problem(row.line, f"{fault}; a correction needs a higher revision"))
            else:
                readings.append(reading)
        except ValueError as error:
            problems.append(Problem(row.line, str(error)))
    return ReadingFile(tuple(readings), tuple(sorted([*table.problems, *problems])))


def pulses_of(amount: Decimal, units_per_pulse: Decimal, *, rounded: bool) -> int:
    """Return the pulses that an amount in the meter's unit stands for.

    Raises ValueError where it is no whole number of them, unless `rounded` (to the nearest, half up).
    """
    # Divided as integers of one common unit, so that the test for a whole number is exact.
    scale = -min(_exponent(amount), _exponent(units_per_pulse), 0)
    divisor = int(units_per_pulse.scaleb(scale, _WIDE))
    whole, rest = divmod(int(amount.scaleb(scale, _WIDE)), divisor)
    if rest and not rounded:
        size = format(units_per_pulse.normalize(), "f")
        raise ValueError(f"{amount} is no whole number of pulses of {size}")
    return whole + (1 if rest * 2 >= divisor else 0)


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # noqa: S101 - exact_number admits neither NaN nor infinity
    return exponent


def _is_household(text: str) -> bool:
    header = text.split("\n", 1)[0].lower()
    return "start" in {name.strip() for name in header.split(",")}


def _read(row: TableRow, amounts: list[str], meter: str | None, interval_minutes: int | None) -> CsvReading:
    """Return the line as a reading; raises ValueError with what is wrong."""
    cells = row.cells
    named = cells.get("meter") or meter
    if not named:
        raise ValueError("meter is empty")
    length = interval_minutes
    if "interval_minutes" in cells:
        length = whole_number(cells["interval_minutes"], "interval_minutes", 1, 60)
    if length not in INTERVALS_MINUTES:
        raise ValueError(f"interval_minutes is {length}; allowed: {', '.join(map(str, INTERVALS_MINUTES))}")
    measured_at = parse_instant(cells.get("start") or cells.get("measurement_time") or "")
    if (measured_at - EPOCH) % timedelta(minutes=length):
        raise ValueError(f"{measured_at.isoformat()} is no multiple of {length} minutes")
    kind, amount = _amount(cells, amounts)
    revision = whole_number(cells.get("revision") or "0", "revision", 0, MAX_INT32)
    return CsvReading(row.line, named, measured_at, length, kind, amount, revision)


def _amount(cells: dict[str, str], amounts: list[str]) -> tuple[AmountKind, Decimal]:
    given = [name for name in amounts if cells[name]]
    if len(given) != 1:
        names = ", ".join(amounts)
        raise ValueError(f"no value is given ({names})" if not given else f"give one of {names}, not {len(given)}")
    kind = AmountKind(given[0])
    amount = exact_number(cells[kind], kind)
    if kind in {AmountKind.PULSES, AmountKind.REGISTER} and amount != int(amount):
        raise ValueError(f"{kind} is {amount}, which is not a whole number")
    if not 0 <= amount <= MAX_VALUE:
        raise ValueError(f"{kind} is {amount}, " + ("which is negative" if amount < 0 else f"above {MAX_VALUE}"))
    return kind, amount


def meters_named(readings: Iterable[CsvReading]) -> Iterator[tuple[str, int]]:
    """Yield each meter that the file names, with the first line that does."""
    first: dict[str, int] = {}
    for reading in readings:
        first.setdefault(reading.meter, reading.line)
    yield from first.items()
