"""Whether a part that was received is, byte for byte, of the form that the contract says.

Contract: schemas/http/measurements.v1.schema.json for JSON, the header and the fields of services.core.csv_records for
CSV. A part is held in memory; it has at most 10,000 rows.
"""

import csv
import io
import re
from datetime import datetime
from typing import NamedTuple

import msgspec

from services.core.csv_records import CSV_HEADER, LINE_ENDS, csv_cell
from services.core.parts import MAX_FILE_ROWS, MAX_HTTPS_BYTES, MAX_HTTPS_MEASUREMENTS
from services.core.records import NOT_APPLICABLE, JsonRecord
from services.core.windows import RESOLUTIONS_MINUTES

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NUMBER = re.compile(r"[1-9][0-9]{0,18}")
_VALUE = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]{2}")
_FIELDS = 12


class Measurements(msgspec.Struct, frozen=True):
    """The body of a part over HTTPS."""

    measurements: list[JsonRecord]


class RowKey(NamedTuple):
    """Where a row stands in a run; compares as rows are sorted, because the form of the time is fixed."""

    measured_at: str
    meter_id: int


class PartContent(NamedTuple):
    """What the rows of a part are, as far as the other parts of its run are concerned."""

    row_count: int
    first: RowKey
    last: RowKey
    resolution_minutes: int


def read_content(ending: str, body: bytes) -> PartContent:
    """Return what a part holds, by the ending of its name. Raises ValueError, with a sentence, for what is wrong."""
    return _read_csv(body) if ending == ".csv" else _read_json(body)


def _read_csv(body: bytes) -> PartContent:
    if body.startswith(_BYTE_ORDER_MARK):
        raise ValueError("the file begins with a byte order mark: something changed it on its way")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 (byte {error.start + 1})") from None
    line_end = next((end for end in LINE_ENDS.values() if text.startswith(CSV_HEADER + end)), None)
    if line_end is None:
        raise ValueError("the file does not begin with the header line")
    if not text.endswith(line_end):
        raise ValueError("the last line has no end: the file is cut off")
    rows = _Rows()
    again = [CSV_HEADER]
    try:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        next(lines)
        for fields in lines:
            if len(fields) != _FIELDS:
                raise ValueError(f"row {rows.count + 1} has {len(fields)} fields, not {_FIELDS}")
            meter_id, _type, _name, _unit, time, minutes, site_id, _site, *values = fields
            rows.add(_number(meter_id, rows), time, _number(minutes, rows), values)
            _number(site_id, rows)
            again.append(",".join(map(csv_cell, fields)))
    except csv.Error as error:
        raise ValueError(f"row {rows.count + 1} cannot be read as CSV: {error}") from None
    if line_end.join(again) + line_end != text:
        raise ValueError("quotes or line ends are not those that were sent: something rewrote the file on its way")
    if rows.count > MAX_FILE_ROWS:
        raise ValueError(f"the file has {rows.count:,} rows, a part has at most {MAX_FILE_ROWS:,}")
    return rows.content()


def _read_json(body: bytes) -> PartContent:
    try:
        records = msgspec.json.decode(body, type=Measurements).measurements
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the body is not the JSON of an export: {error}") from None
    rows = _Rows()
    for record in records:
        values = [record.power, record.energy, record.flow, record.volume]
        rows.add(record.meter_id, record.measurement_time, record.resolution, values)
    if msgspec.json.encode(Measurements(records)) != body:
        raise ValueError("the JSON holds the fields, but not in the bytes that are sent: something rewrote it")
    if rows.count > MAX_HTTPS_MEASUREMENTS or (len(body) > MAX_HTTPS_BYTES and rows.count > 1):
        raise ValueError(
            f"the body has {rows.count:,} measurements in {len(body):,} bytes; "
            f"at most {MAX_HTTPS_MEASUREMENTS:,} and {MAX_HTTPS_BYTES:,} bytes are sent"
        )
    return rows.content()


def _number(text: str, rows: "_Rows") -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"row {rows.count + 1} has {text[:40]!r} where a whole number belongs")
    return int(text)


class _Rows:
    """Looks at row after row; the first that is wrong raises ValueError."""

    def __init__(self) -> None:
        self.count = 0
        self._first: RowKey | None = None
        self._last: RowKey | None = None
        self._resolution = 0
        self._sound_time = ""

    def add(self, meter_id: int, time: str, resolution_minutes: int, values: list[str]) -> None:
        """Take the next row."""
        number = self.count + 1
        if meter_id < 1:
            raise ValueError(f"row {number} has the meter id {meter_id}")
        if self._resolution != resolution_minutes:
            if self._resolution or resolution_minutes not in RESOLUTIONS_MINUTES:
                raise ValueError(f"row {number} has the resolution {resolution_minutes}")
            self._resolution = resolution_minutes
        if time != self._sound_time:
            self._check_time(number, time)
        for amount, total in (values[:2], values[2:]):
            if (amount == NOT_APPLICABLE) != (total == NOT_APPLICABLE):
                raise ValueError(f"row {number} has one value of a pair, and {NOT_APPLICABLE} for the other")
        for value in values:
            if value != NOT_APPLICABLE and not _VALUE.fullmatch(value):
                raise ValueError(
                    f"row {number} has the value {value[:40]!r}: neither two decimals nor {NOT_APPLICABLE}"
                )
        key = RowKey(time, meter_id)
        if self._last is not None and key <= self._last:
            what = "stands twice" if key == self._last else "is not in order"
            raise ValueError(f"row {number} (meter {meter_id} at {time}) {what}")
        self._first = self._first or key
        self._last = key
        self.count = number

    def content(self) -> PartContent:
        """Return what was taken."""
        if self._first is None or self._last is None:
            raise ValueError("there is no row in it; a part has at least one")
        return PartContent(self.count, self._first, self._last, self._resolution)

    def _check_time(self, number: int, time: str) -> None:
        try:
            instant = datetime.fromisoformat(time) if _TIME.fullmatch(time) else None
        except ValueError:
            instant = None
        if instant is None:
            raise ValueError(f"row {number} has the time {time[:40]!r}, not one such as 2026-11-20T10:00:00Z")
        if instant.second or (instant.hour * 60 + instant.minute) % self._resolution:
            raise ValueError(f"row {number} has the time {time}, where no window of {self._resolution} minutes begins")
        self._sound_time = time
