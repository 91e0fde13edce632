"""PostgreSQL's binary COPY format from arrays: one structured array holds a million rows byte for byte.

Source: PostgreSQL's documentation of COPY, "Binary Format": a header, then for each row the number of fields and for
each field its length and its value, everything big-endian; a trailer.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from services.core.columns import Columns
from services.core.readings import ReadingVersion

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_PIECE_ROWS = 4_000
_WIDTHS = {
    "measured_at": 8,
    "arrived_at": 8,
    "value": 8,
    "source_offset": 8,
    "meter_id": 4,
    "revision": 4,
    "source_partition": 4,
    "source_place": 2,
    "interval_minutes": 2,
    "source_topic": 2,
    "is_register": 1,
}
"""Bytes of each column of `reading`, in the order of ReadingVersion."""
# timestamptz counts microseconds from 2000-01-01, we count from 1970-01-01.
_POSTGRES_EPOCH_US = 946_684_800_000_000

_ROW = np.dtype(
    [("fields", ">i2")]
    + [
        item
        for name, width in _WIDTHS.items()
        for item in ((f"{name} length", ">i4"), (name, f">i{width}" if width > 1 else "u1"))
    ]
)


def encode_pieces(columns: Columns) -> Iterator[bytes]:
    """Yield a whole binary COPY of the rows, for the columns of ReadingVersion, in pieces of some hundred kilobytes."""
    yield _HEADER
    for start in range(0, len(columns), _PIECE_ROWS):
        yield _encode(columns.take(slice(start, start + _PIECE_ROWS)))
    yield _TRAILER


def _encode(columns: Columns) -> bytes:
    rows: npt.NDArray[np.void] = np.zeros(len(columns), dtype=_ROW)
    rows["fields"] = len(_WIDTHS)
    for (name, width), array in zip(_WIDTHS.items(), columns.arrays(), strict=True):
        rows[f"{name} length"] = width
        rows[name] = array - _POSTGRES_EPOCH_US if name.endswith("_at") else array
    return rows.tobytes()


COLUMN_NAMES = list(ReadingVersion._fields)
