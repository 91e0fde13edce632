"""A manual export as it is asked for and shown."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from services.api.http.decoding import Id, Instant
from services.api.http.paging import PageQuery
from services.api.http.problems import Problem
from services.api.manual_exports import ExportRefusedError, ManualExport, TooManyExportsError
from services.core.manual_export import MAX_METERS, MAX_SITES, ExportFormat, WantedExport

State = Literal["waiting", "running", "done", "failed", "cancelled", "expired"]
Format = Literal["csv", "jsonl", "parquet"]
_FIELDS = {
    "to": "until",
    "resolution": "resolution_minutes",
    "sites": "site_ids",
    "meters": "meter_ids",
    "when_full": "if_full",
}
"""What the fields of a wanted export are called here, where it is not the same."""


class ExportBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}):
    """What is wanted: the windows that start in [from, until), both on the grid of the resolution."""

    from_: Instant
    until: Instant
    resolution_minutes: Annotated[Literal[1, 5, 15, 60], msgspec.Meta(description="Minutes.")] = 15
    format: Format = "csv"
    site_ids: (
        Annotated[
            list[Id], msgspec.Meta(min_length=1, max_length=MAX_SITES, description="null: all that the caller sees.")
        ]
        | None
    ) = None
    meter_ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_METERS)] | None = None
    as_of: (
        Annotated[Instant, msgspec.Meta(description="As it was known at this instant. null: the newest versions.")]
        | None
    ) = None
    if_full: Annotated[
        Literal["refuse", "wait"],
        msgspec.Meta(description="What to do while three exports of the caller are unfinished."),
    ] = "refuse"


class FileShown(msgspec.Struct, frozen=True):
    """A finished file; it never changes, and is removed at `kept_until` (null: it was). `sha256` is hexadecimal."""

    name: str
    bytes: int
    sha256: str
    kept_until: Instant | None


class LinkShown(msgspec.Struct, frozen=True):
    """An address that opens the file without a token until `expires_at`, for whoever has it."""

    url: str
    expires_at: Instant


class ExportShown(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """An export. `progress` goes from 0 to 1; every window before `position` is written, in `rows` rows so far.

    `file`: once it is `done`, and still when it is `expired`. `download`: only where one export is shown, while the
    file is kept.
    """

    export_id: int
    state: State
    is_cancelling: bool
    progress: float
    position: Instant
    rows: int
    from_: Instant
    until: Instant
    resolution_minutes: int
    format: Format
    site_ids: list[int] | None
    meter_ids: list[int] | None
    as_of: Instant | None
    requested_by: str
    requested_at: Instant
    started_at: Instant | None
    finished_at: Instant | None
    problem_code: str | None
    problem: str | None
    file: FileShown | None
    download: LinkShown | None


class ExportAsked(ExportShown, frozen=True, kw_only=True):
    """An export that was asked for. `rows_kept_from`: windows before it were dropped and have no rows; null: none."""

    rows_kept_from: Instant | None


class Exports(msgspec.Struct, frozen=True):
    """A page of exports, the newest first."""

    exports: list[ExportShown]
    next_cursor: str | None


class ExportsQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which exports."""

    state: Annotated[list[State], msgspec.Meta(max_length=6, description="Any of these.")] = msgspec.field(
        default_factory=list
    )
    mine: Annotated[bool, msgspec.Meta(description="Only those that the caller asked for.")] = False


class KeptFrom(msgspec.Struct, frozen=True):
    """From when on there are rows of a resolution; null: nothing was dropped yet."""

    resolution_minutes: int
    rows_kept_from: Instant | None


class ExportLimits(msgspec.Struct, frozen=True):
    """What may be asked; `at_once` are worked on for a caller at a time, `unfinished` counts those that wait, too."""

    days: int
    sites: int
    meters: int
    at_once: int
    unfinished: int
    resolutions: list[KeptFrom]


def wanted(body: ExportBody, site_ids: Sequence[int] | None) -> WantedExport:
    """Return what a body asks for, of these sites."""
    return WantedExport(
        *(body.from_, body.until, body.resolution_minutes, ExportFormat(body.format)),
        *(site_ids, body.meter_ids, body.as_of),
    )


def refusal(error: ExportRefusedError) -> Problem:
    """Return how a request that cannot be granted is answered: every problem in a sentence, the first one's field."""
    first = error.problems[0]
    sentences = "; ".join(problem.sentence for problem in error.problems)
    code = "too_many_exports" if isinstance(error, TooManyExportsError) else "invalid_value"
    return Problem(code, sentences, field=_FIELDS.get(first.field, first.field))


def shown(export: ManualExport, download: LinkShown | None = None) -> ExportShown:
    """Return an export as it is shown."""
    return ExportShown(**fields(export, download))


def fields(export: ManualExport, download: LinkShown | None = None) -> dict[str, Any]:
    """Return what is shown of an export."""
    asked = export.wanted
    return {
        "export_id": export.export_id,
        "state": export.state,
        "is_cancelling": export.is_cancelling,
        "progress": round(export.share, 4),
        "position": export.position,
        "rows": export.row_count,
        "from_": asked.start,
        "until": asked.end,
        "resolution_minutes": asked.resolution_minutes,
        "format": asked.format.value,
        "site_ids": None if asked.site_ids is None else list(asked.site_ids),
        "meter_ids": None if asked.meter_ids is None else list(asked.meter_ids),
        "as_of": asked.known_at,
        "requested_by": export.requested_by,
        "requested_at": export.requested_at,
        "started_at": export.started_at,
        "finished_at": export.finished_at,
        "problem_code": export.problem_code,
        "problem": export.problem,
        "file": _file(export),
        "download": download,
    }


def _file(export: ManualExport) -> FileShown | None:
    if export.byte_count is None or export.sha256 is None:
        return None
    return FileShown(export.file_name, export.byte_count, export.sha256.hex(), export.expires_at)
