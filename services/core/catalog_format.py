r"""How a catalog is written, as CSV and as JSON, and how it is cut into parts. Deterministic.

Each part stands by itself: the header line, or the object with its four lists, of which some may be empty.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from services.core.catalog_records import (
    FORMAT_VERSION,
    INPUT,
    KINDS,
    CatalogKey,
    CatalogRecord,
    entry,
)
from services.core.csv_records import csv_cell, defused_cell
from services.core.file_transfer import file_text_options
from services.core.parts import MAX_FILE_ROWS, MAX_HTTPS_BYTES, MAX_HTTPS_MEASUREMENTS
from services.core.times import iso_seconds

CSV_HEADER = (
    "format_version,catalog_time(UTC),kind,id,name,site_id,site_name,time_zone,device_id,device_kind,input,meter_id,"
    "meter_type,meter_unit,units_per_pulse,normalization_factor,calorific_value,register_modulus,cadence(minutes),"
    "serial_number,valid_from(UTC)"
)
_LISTS = {kind: f"{name}s" for kind, name in KINDS.items()}


class CatalogFormat(Protocol):
    """How a catalog of one instant is written."""

    @property
    def ending(self) -> str:
        """Of the file name, with its dot."""

    @property
    def max_rows(self) -> int:
        """How many records a part has at most."""

    @property
    def max_bytes(self) -> int | None:
        """How large a part is at most; None: as large as its rows make it."""

    def row(self, record: CatalogRecord) -> bytes:
        """Return a record as it stands in a part."""

    def assemble(self, rows: Iterable[tuple[int, bytes]]) -> bytes:
        """Return the part of these rows, each with its kind."""


class CsvCatalog:
    r"""CSV: `line_end` is `\n` or `\r\n`; `defuse`: no text is a formula to a spreadsheet."""

    ending = ".csv"
    max_rows = MAX_FILE_ROWS
    max_bytes = None

    def __init__(self, catalog_time: datetime, line_end: str, *, defuse: bool) -> None:
        self._begin = f"{FORMAT_VERSION},{iso_seconds(catalog_time)}"
        self._end = line_end
        self._text = defused_cell if defuse else csv_cell

    def row(self, record: CatalogRecord) -> bytes:
        """Return a line with its end; what the kind does not have is empty."""
        valid_from = None if record.valid_from is None else iso_seconds(record.valid_from)
        cells = (KINDS[record.kind], csv_id(record), *record[3:19], valid_from)
        return ",".join((self._begin, *map(self._cell, cells))).encode() + self._end.encode()

    def assemble(self, rows: Iterable[tuple[int, bytes]]) -> bytes:
        """Return the header line and the rows."""
        return b"".join((CSV_HEADER.encode(), self._end.encode(), *(row for _kind, row in rows)))

    def _cell(self, value: str | int | None) -> str:
        if value is None:
            return ""
        return self._text(value) if isinstance(value, str) else str(value)


def csv_id(record: CatalogRecord) -> str:
    """Return what tells a record from all others of its kind."""
    if record.kind == INPUT:
        return f"{record.device_id}/{record.meter_id if record.input is None else record.input}"
    return str(record.key_text or record.number)


class JsonCatalog:
    """JSON, compact: what `Catalog` encodes to."""

    ending = ".json"
    max_rows = MAX_HTTPS_MEASUREMENTS
    max_bytes = MAX_HTTPS_BYTES

    def __init__(self, catalog_time: datetime) -> None:
        self._begin = b'{"format_version":%d,"catalog_time":"%b"' % (FORMAT_VERSION, iso_seconds(catalog_time).encode())

    def row(self, record: CatalogRecord) -> bytes:
        """Return an entry of one of the lists."""
        return msgspec.json.encode(entry(record))

    def assemble(self, rows: Iterable[tuple[int, bytes]]) -> bytes:
        """Return the object with its four lists."""
        lists: dict[int, list[bytes]] = {kind: [] for kind in _LISTS}
        for kind, row in rows:
            lists[kind].append(row)
        written = (b',"%b":[%b]' % (_LISTS[kind].encode(), b",".join(found)) for kind, found in lists.items())
        return b"".join((self._begin, *written, b"}"))


def catalog_format(transport: str, settings: Mapping[str, Any], catalog_time: datetime) -> CatalogFormat:
    """Return how a job's catalog is written. Raises ValueError for settings that are wrong."""
    if transport == "https":
        return JsonCatalog(catalog_time)
    line_end, defuse = file_text_options(settings)
    return CsvCatalog(catalog_time, line_end, defuse=defuse)


class CutCatalog(NamedTuple):
    """A part: where it begins, how many records it has, its bytes."""

    first: CatalogKey
    row_count: int
    body: bytes


class CatalogCutter:
    """Cuts records, which come in their order and in any portions, into parts that are each as full as may be.

    A part is never empty, and a record larger than the byte limit still makes one. Holds one part.
    """

    def __init__(self, form: CatalogFormat) -> None:
        self._form = form
        self._empty_size = len(form.assemble(()))
        self._begin()

    def _begin(self) -> None:
        self._rows: list[tuple[int, bytes]] = []
        self._size = self._empty_size
        self._first: CatalogKey | None = None

    def add(self, records: Iterable[CatalogRecord]) -> Iterator[CutCatalog]:
        """Take records; yield the parts that are full."""
        form = self._form
        for record in records:
            row = form.row(record)
            # With the comma behind it, which the last of each list does without: never more than is said.
            size = len(row) + 1
            is_over = form.max_bytes is not None and self._size + size > form.max_bytes
            if self._rows and (len(self._rows) == form.max_rows or is_over):
                yield from self.finish()
            self._first = self._first or record.key
            self._rows.append((record.kind, row))
            self._size += size

    def finish(self) -> Iterator[CutCatalog]:
        """Yield the part of what is left, if anything is."""
        if self._first is not None:
            yield CutCatalog(self._first, len(self._rows), self._form.assemble(self._rows))
            self._begin()
