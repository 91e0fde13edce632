"""The twelve fields of a Meters Measurements record as a line of CSV (RFC 4180), byte for byte.

Source: the export's field reference. The order and the values are those of the JSON record; the names of the columns
are CSV's own. UTF-8 without a byte order mark; the line end is the job's choice.
"""

import functools
import re
from collections.abc import Callable

from services.core.blocks import Layout, MeterNames
from services.core.parts import MAX_FILE_ROWS, PartFormat

CSV_HEADER = (
    "meter_id,meter_type,meter_name,meter_unit,measurement_time(UTC),resolution(minutes),site_id,site_name,"
    "power(W),energy(Wh),flow,volume"
)
LINE_ENDS = {"lf": "\n", "crlf": "\r\n"}

_NEEDS_QUOTES = re.compile(r'[",\r\n]')
# What spreadsheets take for the beginning of a formula. Tab and line ends count because they are trimmed away.
_FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n")
_DEFUSED_BY = "'"


@functools.cache
def csv_format(line_end: str, *, defuse: bool) -> PartFormat:
    r"""Return the format of CSV parts: at most 10,000 rows, each part with the header line.

    `line_end` is `\n` or `\r\n` and ends every line, the last one too. `defuse`: text that a spreadsheet would take
    for a formula gets an apostrophe in front.
    """
    end = line_end.encode("ascii")
    text = defused_cell if defuse else csv_cell
    layout = Layout(functools.partial(_around, text), None, b"")
    return PartFormat(CSV_HEADER.encode("ascii") + end, end, end, ".csv", MAX_FILE_ROWS, None, layout)


def _around(text: Callable[[str], str], names: MeterNames, resolution_minutes: int) -> tuple[bytes, bytes]:
    before = f"{names.meter_id},{text(names.meter_type)},{text(names.meter_name)},{text(names.meter_unit)},"
    behind = f",{resolution_minutes},{names.site_id},{text(names.site_name)},"
    return before.encode(), behind.encode()


def was_defused(text: str) -> bool:
    """Tell whether a cell's text has an apostrophe in front that defuses a formula."""
    return text.startswith(_DEFUSED_BY) and text[len(_DEFUSED_BY) :].startswith(_FORMULA_BEGINNINGS)


def csv_cell(text: str) -> str:
    """Return a text as a cell, in quotes where RFC 4180 wants them."""
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def defused_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula."""
    return csv_cell(_DEFUSED_BY + text if text.startswith(_FORMULA_BEGINNINGS) else text)
