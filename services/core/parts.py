"""Cutting a run into parts, and the names of runs, parts and files. Deterministic: no clock, no random id."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

from services.core.records import JSON_HEAD, JSON_TAIL, MeasurementRow, render_json

RowT = TypeVar("RowT")

MAX_HTTPS_MEASUREMENTS = 2_000
MAX_HTTPS_BYTES = 1_000_000
MAX_FILE_ROWS = 10_000


class PartFormat(NamedTuple):
    """What stands around the rendered rows of a part, and how much goes into one part."""

    head: bytes
    joint: bytes
    """Between two rows."""
    tail: bytes
    ending: str
    """Of the file name, with its dot."""
    max_rows: int
    max_bytes: int | None
    render: Callable[[Iterable[MeasurementRow]], list[bytes]]
    """Each row as its bytes in the part, without what stands between rows."""

    def assemble(self, rendered: Sequence[bytes]) -> bytes:
        """Return a whole part."""
        return self.head + self.joint.join(rendered) + self.tail


HTTPS_JSON = PartFormat(JSON_HEAD, b",", JSON_TAIL, ".json", MAX_HTTPS_MEASUREMENTS, MAX_HTTPS_BYTES, render_json)


class CutPart(NamedTuple, Generic[RowT]):
    """A part that is complete: its first row, and what its bytes amount to."""

    first_row: RowT
    row_count: int
    byte_count: int
    sha256: bytes


class PartCutter(Generic[RowT]):
    """Cuts a stream of rows, given batch by batch in order, into parts; keeps no rows and no bytes, only a hash.

    A part is never empty, and a single row larger than the byte limit still makes a part: a limit never loses a row.
    """

    def __init__(self, part_format: PartFormat) -> None:
        self._format = part_format
        self._first: list[RowT] = []
        self._rows = 0
        self._bytes = 0
        self._begin()

    def feed(self, rows: Sequence[RowT], rendered: Sequence[bytes]) -> list[CutPart[RowT]]:
        """Take the next rows and return the parts that are complete now."""
        joint_bytes, max_rows, max_bytes = len(self._format.joint), self._format.max_rows, self._format.max_bytes
        if max_bytes is None:
            return self._feed_by_count(rows, rendered)
        finished = []
        begun = 0
        for place, record in enumerate(rendered):
            grown = self._bytes + len(record) + (joint_bytes if self._rows else 0)
            if self._rows and (self._rows == max_rows or grown > max_bytes):
                self._hash(rendered[begun:place])
                finished.append(self._end())
                begun = place
                grown = self._bytes + len(record)
            if not self._rows:
                self._first = [rows[place]]
            self._rows += 1
            self._bytes = grown
        self._hash(rendered[begun:])
        return finished

    def _feed_by_count(self, rows: Sequence[RowT], rendered: Sequence[bytes]) -> list[CutPart[RowT]]:
        """Do as `feed`, where no row's size matters: without a look at each."""
        finished = []
        place = 0
        while place < len(rendered):
            if self._rows == self._format.max_rows:
                finished.append(self._end())
            piece = rendered[place : place + self._format.max_rows - self._rows]
            if not self._rows:
                self._first = [rows[place]]
            joints = len(piece) if self._rows else len(piece) - 1
            self._bytes += sum(map(len, piece)) + joints * len(self._format.joint)
            self._rows += len(piece)
            self._hash(piece)
            place += len(piece)
        return finished

    def finish(self) -> list[CutPart[RowT]]:
        """Return the last part, if there is one; the stream is over."""
        return [self._end()] if self._rows else []

    def _begin(self) -> None:
        self._rows = 0
        self._bytes = len(self._format.head) + len(self._format.tail)
        self._digest = hashlib.sha256(self._format.head)
        self._hashed_any = False

    def _hash(self, rendered: Sequence[bytes]) -> None:
        if rendered:
            if self._hashed_any:
                self._digest.update(self._format.joint)
            self._digest.update(self._format.joint.join(rendered))
            self._hashed_any = True

    def _end(self) -> CutPart[RowT]:
        self._digest.update(self._format.tail)
        part = CutPart(self._first[0], self._rows, self._bytes, self._digest.digest())
        self._begin()
        return part


def compact_time(instant: datetime) -> str:
    """Return `YYYYMMDDTHHMMSSZ`, fit for names of files and ids."""
    return instant.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def run_id(job_id: int, slot_start: datetime) -> str:
    """Return the id of a job's run for one slot."""
    return f"job{job_id}-{compact_time(slot_start)}"


def part_id(installation_id: str, job_id: int, slot_start: datetime, part: int) -> str:
    """Return the id of a part; the same on every attempt (Standard Webhooks' `webhook-id`), another's nowhere."""
    return f"{installation_id}-{run_id(job_id, slot_start)}-part{part}"


def manifest_id(installation_id: str, job_id: int, slot_start: datetime) -> str:
    """Return the id of a run's manifest, the same on every attempt."""
    return f"{installation_id}-{run_id(job_id, slot_start)}-manifest"


def slug(name: str) -> str:
    """Return `name` reduced to letters, digits and dashes, at most 60 characters; `job` when nothing is left."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60].strip("-") or "job"


def file_stem(
    job_id: int, job_name: str, data: str, slot_start: datetime, slot_end: datetime, part: int, parts: int
) -> str:
    """Return the part's file name without its ending."""
    return f"{_run_stem(job_id, job_name, data, slot_start, slot_end)}_{part}of{parts}"


def manifest_file_name(job_id: int, job_name: str, data: str, slot_start: datetime, slot_end: datetime) -> str:
    """Return the name of the run's manifest as a file."""
    return f"{_run_stem(job_id, job_name, data, slot_start, slot_end)}_manifest.json"


def _run_stem(job_id: int, job_name: str, data: str, slot_start: datetime, slot_end: datetime) -> str:
    period = f"{compact_time(slot_start)}_{compact_time(slot_end)}"
    return f"{job_id}-{slug(job_name)}_{data}_{period}"
