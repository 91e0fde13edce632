"""Cutting a run into parts, and the names of runs, parts and files. Deterministic: no clock, no random id."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from services.core.blocks import Block, Layout
from services.core.records import JSON_HEAD, JSON_LAYOUT, JSON_TAIL

MAX_HTTPS_MEASUREMENTS = 2_000
MAX_HTTPS_BYTES = 1_000_000
MAX_FILE_ROWS = 10_000


class PartFormat(NamedTuple):
    """What stands around and between the rows of a part, and how much goes into one part."""

    head: bytes
    joint: bytes
    """Between two rows."""
    tail: bytes
    ending: str
    """Of the file name, with its dot."""
    max_rows: int
    max_bytes: int | None
    layout: Layout
    """Of one row."""

    def assemble(self, rendered: Sequence[bytes]) -> bytes:
        """Return the part of these rows."""
        return self.head + self.joint.join(rendered) + self.tail

    def assemble_block(self, block: Block, first: int, end: int) -> bytes:
        """Return the part of the block's rows from `first` to before `end`."""
        joined = b"".join(block.pieces[first * block.stride : end * block.stride])
        if self.joint == self.tail:
            return self.head + joined
        return b"".join((self.head, memoryview(joined)[: len(joined) - len(self.joint)], self.tail))


HTTPS_JSON = PartFormat(JSON_HEAD, b",", JSON_TAIL, ".json", MAX_HTTPS_MEASUREMENTS, MAX_HTTPS_BYTES, JSON_LAYOUT)


class CutPart(NamedTuple):
    """A part that is complete: which rows of the block it consists of, and its bytes."""

    first: int
    row_count: int
    body: bytes


def cut_parts(part_format: PartFormat, block: Block, *, is_end: bool) -> Iterator[CutPart]:
    """Cut a block, whose first row begins a part, into parts, each as full as it may be.

    Unless the run ends with the block, rows at its end that do not fill a part are left over. A part is never empty,
    and a single row larger than the byte limit still makes a part: a limit never loses a row.
    """
    first = 0
    while first < block.row_count:
        end = min(first + part_format.max_rows, block.row_count)
        body = part_format.assemble_block(block, first, end)
        is_full = end - first == part_format.max_rows
        if part_format.max_bytes is not None and len(body) > part_format.max_bytes and end - first > 1:
            end = first + _fitting(part_format, block, first, end, part_format.max_bytes)
            body, is_full = part_format.assemble_block(block, first, end), True
        if not is_full and not is_end:
            return
        yield CutPart(first, end - first, body)
        first = end


def _fitting(part_format: PartFormat, block: Block, first: int, end: int, max_bytes: int) -> int:
    """Return how many rows from `first` on make a part of at most `max_bytes`; one at least."""
    size = len(part_format.head) + len(part_format.tail) - len(part_format.joint)
    for place in range(first, end):
        size += block.row_bytes(place)
        if size > max_bytes:
            return max(1, place - first)
    return end - first


def compact_time(instant: datetime) -> str:
    """Return `YYYYMMDDTHHMMSSZ`, fit for names of files and ids."""
    return instant.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def run_id(job_id: int, slot_start: datetime) -> str:
    """Return the id of a job's run for one slot."""
    return f"job{job_id}-{compact_time(slot_start)}"


def part_id(installation_id: str, job_id: int, slot_start: datetime, part: int) -> str:
    """Return the id of a part; the same on every attempt (Standard Webhooks' `webhook-id`), another's nowhere."""
    return f"{installation_id}-{run_id(job_id, slot_start)}-part{part}"


def manifest_id(installation_id: str, job_id: int, slot_start: datetime, section: int, sections: int) -> str:
    """Return the id of a run's manifest, the same on every attempt: `section` of `sections`, nearly always 1 of 1."""
    return f"{installation_id}-{run_id(job_id, slot_start)}-{_manifest_word(section, sections)}"


def slug(name: str) -> str:
    """Return `name` reduced to letters, digits and dashes, at most 60 characters; `job` when nothing is left."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60].strip("-") or "job"


def file_stem(
    job_id: int, job_name: str, data: str, slot_start: datetime, slot_end: datetime, part: int, parts: int
) -> str:
    """Return the part's file name without its ending."""
    return f"{_run_stem(job_id, job_name, data, slot_start, slot_end)}_{part}of{parts}"


def manifest_file_name(
    job_id: int, job_name: str, data: str, slot_start: datetime, slot_end: datetime, section: int, sections: int
) -> str:
    """Return the name of the run's manifest as a file."""
    stem = _run_stem(job_id, job_name, data, slot_start, slot_end)
    return f"{stem}_{_manifest_word(section, sections)}.json"


def _manifest_word(section: int, sections: int) -> str:
    return "manifest" if sections == 1 else f"manifest{section}of{sections}"


def _run_stem(job_id: int, job_name: str, data: str, slot_start: datetime, slot_end: datetime) -> str:
    period = f"{compact_time(slot_start)}_{compact_time(slot_end)}"
    return f"{job_id}-{slug(job_name)}_{data}_{period}"
