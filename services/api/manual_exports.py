"""Manual exports: asked for, listed, cancelled. What is wanted is ours; what became of it, services/exports writes."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg

from services.core.manual_export import (
    MAX_AT_ONCE,
    MAX_UNFINISHED,
    ExportFormat,
    Problem,
    WantedExport,
    WhenFull,
    file_name,
    problems_of,
    progress_share,
)
from services.core.times import iso_seconds
from services.platform.errors import UserError
from services.platform.postgres import Connection

_NAMED = 5


class ExportRefusedError(UserError):
    """A request that cannot be granted; every problem says what to do."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(problem.sentence for problem in problems))
        self.problems = problems


class TooManyExportsError(ExportRefusedError):
    """The user has as many unfinished exports as there may be: later it may be granted."""


class ManualExport(NamedTuple):
    """An export as its user sees it."""

    export_id: int
    requested_by: str
    requested_at: datetime
    wanted: WantedExport
    state: str
    """waiting, running, done, failed, cancelled, or expired: done, and its file removed."""
    is_cancelling: bool
    """Its cancellation has been asked for and is not seen yet."""
    position: datetime
    """Every window before this has been written."""
    row_count: int
    byte_count: int | None
    sha256: bytes | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    problem_code: str | None
    problem: str | None
    object_name: str | None
    """Of the file in the store, once it is complete."""

    @property
    def file_name(self) -> str:
        """The file's name."""
        return file_name(self.wanted, self.export_id)

    @property
    def share(self) -> float:
        """How much of the range is written, from 0 to 1."""
        return progress_share(self.wanted.start, self.wanted.end, self.position)

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more, but that its file is removed."""
        return self.state not in {"waiting", "running"}


_COLUMNS = """
SELECT export_id, requested_by, requested_at, range_start, range_end, resolution_minutes, format, site_ids, e.meter_ids,
       known_at, coalesce(state, CASE WHEN cancelled_at IS NULL THEN 'waiting' ELSE 'cancelled' END) AS state,
       cancelled_at IS NOT NULL AND state IS NOT DISTINCT FROM 'running' AS is_cancelling,
       coalesce(position, range_start) AS position, coalesce(row_count, 0) AS row_count, byte_count, sha256, started_at,
       coalesce(finished_at, CASE WHEN state IS NULL THEN cancelled_at END) AS finished_at, expires_at, problem_code,
       problem, object_key
FROM manual_export e LEFT JOIN manual_export_progress p USING (organization_id, export_id)
"""
_UNFINISHED = """
SELECT export_id
FROM manual_export LEFT JOIN manual_export_progress USING (organization_id, export_id)
WHERE organization_id = $1 AND requested_by = $2 AND (state = 'running' OR (state IS NULL AND cancelled_at IS NULL))
ORDER BY export_id
"""
# From when on readings and superseded versions are kept, the instant up to which everything that arrived is stored, and
# where the platform's clock stands.
_KNOWLEDGE = """
SELECT (SELECT min((regexp_match(pg_get_expr(relpartbound, oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
        FROM pg_class JOIN pg_inherits ON inhrelid = oid
        WHERE inhparent IN ('reading'::regclass, 'reading_superseded'::regclass)) AS kept_from,
       CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END AS stored_until
FROM ingest_progress
"""
_INSERT = """
INSERT INTO manual_export (organization_id, requested_by, range_start, range_end, resolution_minutes, site_ids,
                           meter_ids, known_at, format, catalog_revision)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, revision FROM catalog_revision
RETURNING export_id
"""


async def create_export(
    connection: Connection, organization_id: int, requested_by: str, wanted: WantedExport, when_full: WhenFull
) -> int:
    """Ask for an export and return its id. Call it in a transaction.

    Raises ExportRefusedError with every problem there is, TooManyExportsError where the user must wait.
    """
    problems = problems_of(wanted)
    if not problems:
        problems = [
            *await _unknown(connection, "sites", "site", organization_id, wanted.site_ids),
            *await _unknown(connection, "meters", "meter", organization_id, wanted.meter_ids),
            *await _unknowable(connection, wanted),
        ]
    if problems:
        raise ExportRefusedError(problems)
    # Requests of one user are counted one after the other.
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended($1, 19))", f"export|{organization_id}|{requested_by}"
    )
    unfinished = [row["export_id"] for row in await connection.fetch(_UNFINISHED, organization_id, requested_by)]
    if len(unfinished) >= (MAX_AT_ONCE if when_full is WhenFull.REFUSE else MAX_UNFINISHED):
        raise TooManyExportsError([_too_many(unfinished, when_full)])
    export_id: int = await connection.fetchval(
        _INSERT,
        organization_id,
        requested_by,
        wanted.start,
        wanted.end,
        wanted.resolution_minutes,
        _ints(wanted.site_ids),
        _ints(wanted.meter_ids),
        wanted.known_at,
        wanted.format.value,
    )
    return export_id


async def rows_kept_from(connection: Connection, resolution_minutes: int) -> datetime | None:
    """Return before when retention has dropped closed windows, so that an export has no rows there. None: nowhere."""
    found: datetime | None = await connection.fetchval(
        "SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1", resolution_minutes
    )
    return found


async def list_exports(
    connection: Connection,
    organization_id: int,
    *,
    limit: int,
    before_id: int | None = None,
    requested_by: str | None = None,
    states: Collection[str] | None = None,
    within_sites: Collection[int] | None = None,
) -> list[ManualExport]:
    """Return the organization's exports, the newest first; page on with `before_id`.

    `within_sites`: only those whose sites are all among these.
    """
    rows = await connection.fetch(
        f"SELECT * FROM ({_COLUMNS} WHERE organization_id = $1 AND ($2::bigint IS NULL OR export_id < $2) "  # noqa: S608 - constants
        "AND ($3::text IS NULL OR requested_by = $3) AND ($6::int[] IS NULL OR site_ids <@ $6)) AS found "
        "WHERE $4::text[] IS NULL OR state = ANY ($4) ORDER BY export_id DESC LIMIT $5",
        organization_id,
        before_id,
        requested_by,
        None if states is None else list(states),
        limit,
        None if within_sites is None else list(within_sites),
    )
    return [_export(row) for row in rows]


async def find_export(connection: Connection, organization_id: int, export_id: int) -> ManualExport:
    """Return an export. Raises UserError where the organization has none of this id."""
    row = await connection.fetchrow(
        f"{_COLUMNS} WHERE organization_id = $1 AND export_id = $2",
        organization_id,
        export_id,
    )
    if row is None:
        raise UserError(f"there is no export {export_id}; `meterpost exports list` shows those there are")
    return _export(row)


async def cancel_export(
    connection: Connection, organization_id: int, export_id: int, cancelled_by: str
) -> ManualExport:
    """Ask that an export is given up, and return it. To ask twice changes nothing.

    Raises UserError where there is none, or it is over.
    """
    await connection.execute(
        "SELECT FROM manual_export WHERE organization_id = $1 AND export_id = $2 FOR UPDATE", organization_id, export_id
    )
    export = await find_export(connection, organization_id, export_id)
    if export.is_over and export.state != "cancelled":
        raise UserError(f"export {export_id} is {export.state}: there is nothing to cancel")
    await connection.execute(
        "UPDATE manual_export SET cancelled_at = now(), cancelled_by = $3 "
        "WHERE organization_id = $1 AND export_id = $2 AND cancelled_at IS NULL",
        organization_id,
        export_id,
        cancelled_by,
    )
    return await find_export(connection, organization_id, export_id)


def _too_many(unfinished: Sequence[int], when_full: WhenFull) -> Problem:
    named = ", ".join(map(str, unfinished[:_NAMED]))
    if when_full is WhenFull.REFUSE:
        sentence = (
            f"{MAX_AT_ONCE} exports are worked on for you at a time, and {named} are not finished: wait for one of "
            "them, cancel one, or ask for the new one to wait its turn"
        )
        return Problem("when_full", "too_many_exports", sentence)
    sentence = f"{len(unfinished)} of your exports are not finished, {named} among them: wait for some, or cancel some"
    return Problem("when_full", "too_many_waiting", sentence)


async def _unknown(
    connection: Connection, field: str, table: str, organization_id: int, chosen: Sequence[int] | None
) -> list[Problem]:
    if chosen is None:
        return []
    rows = await connection.fetch(
        f"SELECT {table}_id FROM {table} WHERE organization_id = $1 AND {table}_id = ANY ($2::int[])",  # noqa: S608 - names of ours
        organization_id,
        _ints(chosen),
    )
    missing = sorted(set(chosen) - {row[0] for row in rows})
    if not missing:
        return []
    named = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
    sentence = f"there is no {table} {named}" if len(missing) == 1 else f"there are no {table}s {named}"
    return [Problem(field, f"unknown_{table}", f"{sentence} here: leave out what is not yours")]


async def _unknowable(connection: Connection, wanted: WantedExport) -> list[Problem]:
    """Return why what was known then cannot be said."""
    if wanted.known_at is None:
        return []
    row = await connection.fetchrow(_KNOWLEDGE)
    kept_from, stored_until = (None, None) if row is None else row
    if stored_until is None or kept_from is None:
        sentence = "nothing is stored yet, so nothing was known then: leave the instant out"
        return [Problem("as_of", "nothing_stored", sentence)]
    problems = []
    if wanted.known_at >= stored_until:
        sentence = (
            f"what arrived up to {iso_seconds(wanted.known_at)} is not all stored yet: ask for an instant before "
            f"{iso_seconds(stored_until)}, or leave it out for the newest versions"
        )
        problems.append(Problem("as_of", "not_known_yet", sentence))
    if wanted.start < kept_from:
        sentence = (
            f"versions of readings are kept from {iso_seconds(kept_from)} on, so what was known of earlier ones can no "
            "longer be said: begin there or later, or leave the instant out for the newest versions"
        )
        problems.append(Problem("from", "no_longer_kept", sentence))
    if wanted.known_at <= wanted.start:
        sentence = (
            f"at {iso_seconds(wanted.known_at)} nothing of what begins at {iso_seconds(wanted.start)} could be known: "
            "ask for a later instant, or an earlier range"
        )
        problems.append(Problem("as_of", "before_range", sentence))
    return problems


def _export(row: asyncpg.Record) -> ManualExport:
    export_id, requested_by, requested_at, start, end, resolution, name, sites, meters, known_at, *rest = row
    wanted = WantedExport(start, end, resolution, ExportFormat(name), sites, meters, known_at)
    return ManualExport(export_id, requested_by, requested_at, wanted, *rest)


def _ints(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else [one for one in ids if abs(one) < 1 << 31]
