"""The twelve fields of a Meters Measurements record as a line of CSV (RFC 4180), byte for byte.

Source: the export's field reference. The order and the values are those of the JSON record; the names of the columns
are CSV's own. UTF-8 without a byte order mark; the line end is the job's choice.
"""

import functools
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact
from typing import NamedTuple

from services.core.conversion import MINUTES_PER_HOUR, Utility
from services.core.parts import MAX_FILE_ROWS, PartFormat
from services.core.records import NOT_APPLICABLE, MeasurementRow
from services.core.times import iso_seconds

CSV_HEADER = (
    "meter_id,meter_type,meter_name,meter_unit,measurement_time(UTC),resolution(minutes),site_id,site_name,"
    "power(W),energy(Wh),flow,volume"
)
LINE_ENDS = {"lf": "\n", "crlf": "\r\n"}

_NEEDS_QUOTES = re.compile(r'[",\r\n]')
# What spreadsheets take for the beginning of a formula. Tab and CR count because they are trimmed away.
_FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")
_DEFUSED_BY = "'"

# The same exactness and rounding as everywhere (conversion), with the contexts' own methods: the fastest form.
_multiply = Context(prec=200, traps=[Inexact]).multiply
_quantize = Context(prec=200, rounding=ROUND_HALF_UP).quantize
_CENT = Decimal("0.01")
# Meters whose constant text is kept; beyond that it is collected anew.
_MOST_KNOWN = 200_000
_NO_VALUES = f"{NOT_APPLICABLE},{NOT_APPLICABLE}"


@functools.cache
def csv_format(line_end: str, *, defuse: bool) -> PartFormat:
    r"""Return the format of CSV parts: at most 10,000 rows, each part with the header line.

    `line_end` is `\n` or `\r\n` and ends every line, the last one too. `defuse`: text that a spreadsheet would take
    for a formula gets an apostrophe in front.
    """
    end = line_end.encode("ascii")
    return PartFormat(
        CSV_HEADER.encode("ascii") + end, end, end, ".csv", MAX_FILE_ROWS, None, csv_renderer(defuse=defuse)
    )


def csv_renderer(*, defuse: bool) -> Callable[[Iterable[MeasurementRow]], list[bytes]]:
    """Return what renders each row as a line without its end.

    Fastest on rows that are sorted by time and come back to the same meters, as those of an export do.
    """
    text = _defused_cell if defuse else csv_cell
    known: dict[int, _Constant] = {}

    def render(rows: Iterable[MeasurementRow]) -> list[bytes]:
        if len(known) > _MOST_KNOWN:
            known.clear()
        lines: list[bytes] = []
        add = lines.append
        measured_at: datetime | None = None
        time = ""
        for row in rows:
            meter_id, meter_type, utility, name, unit, at, minutes, site_id, site_name, energy_wh, volume = row
            if at is not measured_at and at != measured_at:
                measured_at, time = at, iso_seconds(at)
            constant = known.get(meter_id)
            if (
                constant is None
                or constant.utility is not utility
                or constant.name != name
                or constant.site_name != site_name
                or constant.site_id != site_id
                or constant.unit != unit
                or constant.meter_type != meter_type
                or constant.minutes != minutes
            ):
                constant = known[meter_id] = _Constant(
                    name,
                    site_name,
                    site_id,
                    unit,
                    meter_type,
                    minutes,
                    utility,
                    utility.has_energy,
                    utility.has_volume,
                    f"{meter_id},{text(meter_type)},{text(name)},{text(unit)},",
                    f",{minutes},{site_id},{text(site_name)},",
                    Decimal(MINUTES_PER_HOUR // minutes),
                )
            if energy_wh is None or not constant.has_energy:
                energy = _NO_VALUES
            else:
                energy = f"{_quantize(_multiply(energy_wh, constant.per_hour), _CENT)},{_quantize(energy_wh, _CENT)}"
            if volume is None or not constant.has_volume:
                flow = _NO_VALUES
            else:
                flow = f"{_quantize(_multiply(volume, constant.per_hour), _CENT)},{_quantize(volume, _CENT)}"
            add(f"{constant.before}{time}{constant.behind}{energy},{flow}".encode())
        return lines

    return render


class _Constant(NamedTuple):
    """What of a meter's lines is the same in every window, and the values it was made from."""

    name: str
    site_name: str
    site_id: int
    unit: str
    meter_type: str
    minutes: int
    utility: Utility
    has_energy: bool
    has_volume: bool
    before: str
    behind: str
    per_hour: Decimal


def csv_cell(text: str) -> str:
    """Return a text as a cell, in quotes where RFC 4180 wants them."""
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def _defused_cell(text: str) -> str:
    return csv_cell(_DEFUSED_BY + text if text.startswith(_FORMULA_BEGINNINGS) else text)
