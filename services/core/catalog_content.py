"""Whether a part of a catalog that was received is, byte for byte, of the form that the contract says.

Contract: schemas/http/catalog.v1.schema.json for JSON, `CSV_HEADER` of services.core.catalog_format for CSV. A part is
held in memory; it has at most 10,000 records.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from services.core.catalog_format import CSV_HEADER
from services.core.catalog_records import (
    DEVICE,
    FORMAT_VERSION,
    INPUT,
    KINDS,
    METER,
    SITE,
    Catalog,
    CatalogKey,
    input_key,
)
from services.core.csv_records import LINE_ENDS, csv_cell, was_defused
from services.core.parts import MAX_FILE_ROWS, MAX_HTTPS_BYTES, MAX_HTTPS_MEASUREMENTS

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_FIELDS = CSV_HEADER.count(",") + 1
_KIND_OF = {name: kind for kind, name in KINDS.items()}


class CatalogContent(NamedTuple):
    """What the records of a part are, as far as the other parts of its run are concerned."""

    row_count: int
    first: CatalogKey
    last: CatalogKey
    catalog_time: str
    resolution_minutes: None = None


def read_catalog(ending: str, body: bytes) -> CatalogContent:
    """Return what a part holds, by the ending of its name. Raises ValueError, with a sentence, for what is wrong."""
    return _read_csv(body) if ending == ".csv" else _read_json(body)


def _read_json(body: bytes) -> CatalogContent:
    try:
        found = msgspec.json.decode(body, type=Catalog)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the body is not the JSON of a catalog: {error}") from None
    if msgspec.json.encode(found) != body:
        raise ValueError("the JSON holds the fields, but not in the bytes that are sent: something rewrote it")
    _check_version(str(found.format_version))
    keys = [
        *(CatalogKey(SITE, "", site.id) for site in found.sites),
        *(CatalogKey(DEVICE, device.id, 0) for device in found.devices),
        *(input_key(one.device_id, one.input, one.meter_id) for one in found.inputs),
        *(CatalogKey(METER, "", meter.id) for meter in found.meters),
    ]
    if len(keys) > MAX_HTTPS_MEASUREMENTS or (len(body) > MAX_HTTPS_BYTES and len(keys) > 1):
        raise ValueError(
            f"the body has {len(keys):,} records in {len(body):,} bytes; "
            f"at most {MAX_HTTPS_MEASUREMENTS:,} and {MAX_HTTPS_BYTES:,} bytes are sent"
        )
    return _content(keys, found.catalog_time)


def _read_csv(body: bytes) -> CatalogContent:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 (byte {error.start + 1})") from None
    line_end = next((end for end in LINE_ENDS.values() if text.startswith(CSV_HEADER + end)), None)
    if line_end is None:
        raise ValueError("the file does not begin with the header line of a catalog")
    if not text.endswith(line_end):
        raise ValueError("the last line has no end: the file is cut off")
    keys: list[CatalogKey] = []
    times: set[str] = set()
    again = [CSV_HEADER]
    try:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        next(lines)
        for number, fields in enumerate(lines, start=1):
            if len(fields) != _FIELDS:
                raise ValueError(f"record {number} has {len(fields)} fields, not {_FIELDS}")
            _check_version(fields[0])
            times.add(fields[1])
            keys.append(_key(number, fields))
            again.append(",".join(map(csv_cell, fields)))
    except csv.Error as error:
        raise ValueError(f"record {len(keys) + 1} cannot be read as CSV: {error}") from None
    if line_end.join(again) + line_end != text:
        raise ValueError("quotes or line ends are not those that were sent: something rewrote the file on its way")
    if len(keys) > MAX_FILE_ROWS:
        raise ValueError(f"the file has {len(keys):,} records, a part has at most {MAX_FILE_ROWS:,}")
    if len(times) > 1:
        raise ValueError(f"its records are of several times: {', '.join(sorted(times)[:3])}")
    return _content(keys, next(iter(times), ""))


def _key(number: int, fields: list[str]) -> CatalogKey:
    """Return the key of a line, from the columns that say it; which columns there are is the header's affair."""
    kind = _KIND_OF.get(fields[2])
    site_id, device_id, input_number, meter_id = fields[5], fields[8], fields[10], fields[11]
    if was_defused(device_id):
        device_id = device_id[1:]
    if kind == SITE:
        return CatalogKey(SITE, "", _number(number, site_id))
    if kind == DEVICE:
        return CatalogKey(DEVICE, device_id, 0)
    if kind == INPUT:
        which = _number(number, input_number) if input_number else None
        return input_key(device_id, which, _number(number, meter_id))
    if kind == METER:
        return CatalogKey(METER, "", _number(number, meter_id))
    raise ValueError(f"record {number} is of the kind {fields[2][:40]!r}; there are {', '.join(_KIND_OF)}")


def _number(record: int, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"record {record} has {text[:40]!r} where a whole number belongs")
    return int(text)


def _check_version(version: str) -> None:
    if version != str(FORMAT_VERSION):
        raise ValueError(f"it is a catalog of format {version[:20]!r}, this version knows {FORMAT_VERSION}")


def _content(keys: Iterable[CatalogKey], catalog_time: str) -> CatalogContent:
    first = last = None
    count = 0
    for count, key in enumerate(keys, start=1):
        if last is not None and not last.is_before(key):
            what = "stands twice" if key == last else "is not in order"
            raise ValueError(f"record {count} ({said_key(key)}) {what}")
        first, last = first or key, key
    if first is None or last is None:
        raise ValueError("there is no record in it; a part has at least one")
    if not _TIME.fullmatch(catalog_time):
        raise ValueError(f"it has the catalog time {catalog_time[:40]!r}, not one such as 2026-11-21T00:00:00Z")
    return CatalogContent(count, first, last, catalog_time)


def said_key(key: CatalogKey) -> str:
    """Return a key in words."""
    return f"{KINDS[key.kind]} {key.device_id or key.number}"
