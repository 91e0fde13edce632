"""Parquet out of the rows that COPY wrote as CSV. The only module that imports pyarrow. Blocks.

Every column has one type for ever: amounts are exact decimals with two places (decimal128(38, 2)), times are UTC,
what a utility does not have is null.

Arrow's allocator keeps for each thread what that thread has freed, some 50 MB after a chunk of 100,000 rows, and gives
it back only when it is told to in that same thread. So each thread that has worked on a chunk tells it, and Arrow's own
threads do nothing here.
"""

import io
from collections.abc import Iterable
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import csv
from pyarrow import parquet as pq

_AMOUNT = pa.decimal128(38, 2)
SCHEMA = pa.schema(
    [
        pa.field("meter_id", pa.int32(), nullable=False),
        pa.field("meter_type", pa.string(), nullable=False),
        pa.field("meter_name", pa.string(), nullable=False),
        pa.field("meter_unit", pa.string(), nullable=False),
        pa.field("measurement_time", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("resolution_minutes", pa.int16(), nullable=False),
        pa.field("site_id", pa.int32(), nullable=False),
        pa.field("site_name", pa.string(), nullable=False),
        pa.field("power_w", _AMOUNT),
        pa.field("energy_wh", _AMOUNT),
        pa.field("flow_per_hour", _AMOUNT),
        pa.field("volume", _AMOUNT),
    ]
)
_OPTIONS: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "version": "2.6"}


class _Sink(Protocol):
    def write(self, data: bytes) -> object:
        """Take the next bytes."""


def to_parquet(lines: bytes) -> bytes:
    """Return a file with the rows of a chunk, as COPY wrote them, without a header."""
    try:
        return _converted(lines)
    finally:
        _give_back()


def _converted(lines: bytes) -> bytes:
    table = csv.read_csv(
        pa.BufferReader(lines),
        read_options=csv.ReadOptions(column_names=SCHEMA.names, use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={field.name: field.type for field in SCHEMA},
            # Text is never null, whatever it says.
            null_values=["N/A"],
            strings_can_be_null=False,
        ),
    ).cast(SCHEMA)
    out = io.BytesIO()
    with pq.ParquetWriter(out, SCHEMA, **_OPTIONS) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    return out.getvalue()


def join_parquet(chunks: Iterable[bytes], sink: _Sink) -> None:
    """Write one file with the rows of all chunks, each as a row group of its own."""
    try:
        with pq.ParquetWriter(pa.PythonFile(_Counted(sink), mode="w"), SCHEMA, **_OPTIONS) as writer:
            for chunk in chunks:
                _append(writer, chunk)
                _give_back()
    finally:
        _give_back()


def _append(writer: pq.ParquetWriter, chunk: bytes) -> None:
    table = pq.read_table(pa.BufferReader(chunk), schema=SCHEMA, use_threads=False)
    writer.write_table(table, row_group_size=max(1, table.num_rows))


def _give_back() -> None:
    """Give the memory back that this thread has freed. Tables are freed when the function that made them is over."""
    pa.default_memory_pool().release_unused()


class _Counted(io.RawIOBase):
    """A sink as a file that knows how much was written."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__()
        self._sink = sink
        self._written = 0

    def writable(self) -> bool:
        """Tell that it is for writing."""
        return True

    def tell(self) -> int:
        """Tell how much was written."""
        return self._written

    def write(self, data: Any) -> int:
        """Pass the next bytes on."""
        content = bytes(data)
        self._sink.write(content)
        self._written += len(content)
        return len(content)
