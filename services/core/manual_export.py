"""What may be asked of a manual export, and how it is cut into chunks. Pure: no clock, no tables."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from services.core.parts import compact_time
from services.core.times import ceil_to, floor_to, iso_seconds
from services.core.windows import RESOLUTIONS_MINUTES

LONGEST_RANGE = timedelta(days=366)
FIRST_YEAR, LAST_YEAR = 1970, 9000
MAX_SITES = 250
MAX_METERS = 50_000
"""That are chosen one by one; all meters of the chosen sites may be more."""
MAX_AT_ONCE = 3
"""Exports of one user that are worked on at a time."""
MAX_UNFINISHED = 50
"""Exports of one user that are worked on or wait."""

# A statement reads about so many readings, makes about so many rows and probes the primary key about so often at most.
CHUNK_READINGS = 250_000
CHUNK_ROWS = 100_000
CHUNK_PROBES = 300_000
LONGEST_CHUNK = timedelta(days=7)
# Below this share of all meters theirs are read one by one, above it the time is read as it lies.
SELECTIVE_SHARE = 0.1


class ExportFormat(StrEnum):
    """How the file is written."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    PARQUET = "parquet"


class WhenFull(StrEnum):
    """What becomes of an export that its user has asked for while three others are unfinished."""

    REFUSE = "refuse"
    WAIT = "wait"


class Problem(NamedTuple):
    """What is wrong with a request: the field, a stable code, and a sentence that says what to do."""

    field: str
    code: str
    sentence: str


class WantedExport(NamedTuple):
    """What somebody wants; sites and meters None: all of the organization's."""

    start: datetime
    end: datetime
    resolution_minutes: int
    format: ExportFormat = ExportFormat.CSV
    site_ids: Sequence[int] | None = None
    meter_ids: Sequence[int] | None = None
    known_at: datetime | None = None


def problems_of(wanted: WantedExport) -> list[Problem]:
    """Return what is wrong with a request as far as it can be said without looking anything up."""
    found: list[Problem] = []
    for field, instant in (("from", wanted.start), ("to", wanted.end), ("as_of", wanted.known_at)):
        if instant is not None and not FIRST_YEAR <= instant.year <= LAST_YEAR:
            sentence = f"{field} lies in the year {instant.year}, in which no meter was read: take another one"
            return [Problem(field, "out_of_time", sentence)]
    if wanted.resolution_minutes not in RESOLUTIONS_MINUTES:
        names = ", ".join(map(str, RESOLUTIONS_MINUTES))
        sentence = f"the resolution is {wanted.resolution_minutes} minutes; there are {names}: choose one of them"
        found.append(Problem("resolution", "unknown_resolution", sentence))
    else:
        found += _grid_problems(wanted)
    if wanted.end <= wanted.start:
        sentence = (
            f"nothing lies between {iso_seconds(wanted.start)} and {iso_seconds(wanted.end)}: "
            "the end must be after the start"
        )
        found.append(Problem("to", "empty_range", sentence))
    elif wanted.end - wanted.start > LONGEST_RANGE:
        sentence = (
            f"the range has {(wanted.end - wanted.start).days} days, {LONGEST_RANGE.days} are allowed: "
            "split it into several exports"
        )
        found.append(Problem("to", "range_too_long", sentence))
    found += _choice_problems("sites", wanted.site_ids, MAX_SITES)
    found += _choice_problems("meters", wanted.meter_ids, MAX_METERS)
    return found


def _grid_problems(wanted: WantedExport) -> Iterator[Problem]:
    step = timedelta(minutes=wanted.resolution_minutes)
    for field, instant in (("from", wanted.start), ("to", wanted.end)):
        before, after = floor_to(instant, step), ceil_to(instant, step)
        if before != after:
            sentence = (
                f"no window of {wanted.resolution_minutes} minutes starts at {iso_seconds(instant)}: "
                f"take {iso_seconds(before)} or {iso_seconds(after)}"
            )
            yield Problem(field, "not_on_grid", sentence)


def _choice_problems(field: str, chosen: Sequence[int] | None, most: int) -> Iterator[Problem]:
    if chosen is None:
        return
    if not chosen:
        yield Problem(field, "nothing_chosen", f"no {field} are chosen: name some, or leave the choice out for all")
    if len(chosen) > most:
        sentence = f"{len(chosen):,} {field} are chosen, {most:,} are allowed: split them into several exports"
        yield Problem(field, "too_many", sentence)
    if len(set(chosen)) < len(chosen):
        twice = sorted({one for one in chosen if chosen.count(one) > 1}) if len(chosen) <= most else []
        named = f" ({', '.join(map(str, twice[:5]))})" if twice else ""
        yield Problem(field, "chosen_twice", f"some {field} are named twice{named}: name each once")


class ChunkPlan(NamedTuple):
    """How an export is read; fixed when it begins."""

    chunk_minutes: int
    is_selective: bool
    """Whether the readings of the meters are asked for one by one."""


def plan_chunks(resolution_minutes: int, cadence_minutes: int, meters: int, all_meters: int) -> ChunkPlan:
    """Return how many minutes go into a chunk, a multiple of the resolution: so that it is some tenths of a second.

    `cadence_minutes` is the shortest of the meters', `all_meters` how many there are on the platform.
    """
    is_selective = meters < SELECTIVE_SHARE * all_meters
    readings_each = max(1, resolution_minutes // cadence_minutes)
    read = meters if is_selective else max(meters, all_meters)
    windows = min(CHUNK_ROWS // max(1, meters), CHUNK_READINGS // max(1, read * readings_each))
    if is_selective:
        windows = min(windows, CHUNK_PROBES // (max(1, meters) * resolution_minutes))
    longest = LONGEST_CHUNK // timedelta(minutes=resolution_minutes)
    return ChunkPlan(max(1, min(windows, longest)) * resolution_minutes, is_selective)


def file_name(wanted: WantedExport, export_id: int) -> str:
    """Return the name of the file: only letters, digits, `_`, `-` and dots."""
    span = f"{compact_time(wanted.start)}_{compact_time(wanted.end)}"
    known = "" if wanted.known_at is None else f"_known-{compact_time(wanted.known_at)}"
    return f"measurements_{wanted.resolution_minutes}min_{span}{known}_export{export_id}.{wanted.format.value}"


def progress_share(start: datetime, end: datetime, position: datetime) -> float:
    """Return which share of the range is done, from 0 to 1."""
    return min(1.0, max(0.0, (position - start) / (end - start)))
