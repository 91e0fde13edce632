"""Runs of export jobs, their parts and the attempts to deliver them. Read only: services/delivery owns the tables."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from services.api.catalog_queries import AnyConnection
from services.core.parts import run_id

RUN_STATES = ("planned", "frozen", "delivered", "empty", "skipped", "failed", "given_up")


class Run(NamedTuple):
    """One run of a job, with the name the job had in that version."""

    job_id: int
    job_name: str
    slot_start: datetime
    slot_end: datetime
    job_version: int
    catalog_revision: int
    state: str
    part_count: int
    row_count: int
    byte_count: int
    planned_at: datetime
    frozen_at: datetime | None
    finished_at: datetime | None
    is_forced: bool
    """Some window of it was closed by an operator's decision, before everything was stored."""
    intervals_present: int | None
    """Of the expected ones; None, as the next two: not frozen yet, or found to be empty among many at once."""
    intervals_expected: int | None
    silent_meter_count: int | None
    resend_count: int

    @property
    def run_id(self) -> str:
        """The run's name for people and programs."""
        return run_id(self.job_id, self.slot_start)


class Part(NamedTuple):
    """One part of a run."""

    part: int
    row_count: int
    byte_count: int
    sha256: bytes
    state: str
    attempt_count: int
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    is_manifest: bool


class Attempt(NamedTuple):
    """One attempt to deliver a part; `detail` is what the receiver answered."""

    part: int
    attempt: int
    started_at: datetime
    finished_at: datetime
    outcome: str
    reason: str
    detail: str


_RUNS = """
    SELECT run.job_id, version.name, run.slot_start, run.slot_end, run.job_version, run.catalog_revision, run.state,
           run.part_count, run.row_count, run.byte_count, run.planned_at, run.frozen_at, run.finished_at,
           run.is_forced, run.intervals_present, run.intervals_expected, run.silent_meter_count,
           run.resend_count
    FROM export_run AS run
    JOIN export_job_version AS version
        ON version.organization_id = run.organization_id AND version.job_id = run.job_id
           AND version.version = run.job_version
    WHERE run.organization_id = $1
"""


def parse_run_id(text: str) -> tuple[int, datetime]:
    """Return the job and the slot's start that a run's id names. Raises ValueError."""
    found = re.fullmatch(r"job(\d{1,9})-(\d{8}T\d{6})Z", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no run; a run is named like job3-20261120T100000Z")
    try:
        start = datetime.strptime(found[2], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{text!r} is no run: {found[2]} is no time") from None
    return int(found[1]), start


async def list_runs(
    connection: AnyConnection, organization_id: int, *, job_id: int | None, state: str | None, limit: int
) -> list[Run]:
    """Return the newest runs, by slot and then job, of one job or of all, in one state or in any."""
    rows = await connection.fetch(
        _RUNS
        + """
        AND ($2::int IS NULL OR run.job_id = $2) AND ($3::text IS NULL OR run.state = $3)
        ORDER BY run.slot_start DESC, run.job_id LIMIT $4
        """,
        organization_id,
        job_id,
        state,
        limit,
    )
    return [Run(*row) for row in rows]


async def runs_page(
    connection: AnyConnection,
    organization_id: int,
    job_ids: Sequence[int] | None,
    state: str | None,
    *,
    after: tuple[datetime, int] | None,
    limit: int,
) -> list[Run]:
    """Return runs by slot, the newest first, and then job; `after`: slot and job where the page before ended."""
    rows = await connection.fetch(
        _RUNS
        + """
        AND ($2::int[] IS NULL OR run.job_id = ANY ($2)) AND ($3::text IS NULL OR run.state = $3)
        AND ($4::timestamptz IS NULL OR run.slot_start < $4 OR (run.slot_start = $4 AND run.job_id > $5::int))
        ORDER BY run.slot_start DESC, run.job_id LIMIT $6
        """,
        organization_id,
        None if job_ids is None else list(job_ids),
        state,
        *(after or (None, None)),
        limit,
    )
    return [Run(*row) for row in rows]


async def find_run(connection: AnyConnection, organization_id: int, job_id: int, slot_start: datetime) -> Run | None:
    """Return one run, or None."""
    row = await connection.fetchrow(
        _RUNS + " AND run.job_id = $2 AND run.slot_start = $3", organization_id, job_id, slot_start
    )
    return None if row is None else Run(*row)


async def with_intervals(connection: AnyConnection, organization_id: int, run: Run) -> Run:
    """Return the run with its intervals, counted now where it was found to be empty without a look at its meters."""
    if run.state != "empty" or run.intervals_expected is not None:
        return run
    row = await connection.fetchrow(
        """
        SELECT coalesce(sum(c.intervals_present), 0)::bigint, coalesce(sum(c.intervals_expected), 0)::bigint,
               count(*) FILTER (WHERE c.windows_present = 0)
        FROM export_job_version v
        LEFT JOIN LATERAL completeness($1, v.resolution_minutes, $4, $5, $6, v.site_ids) c ON true
        WHERE v.organization_id = $1 AND v.job_id = $2 AND v.version = $3 AND v.data = 'meters_measurements'
        HAVING count(*) > 0
        """,
        organization_id,
        run.job_id,
        run.job_version,
        run.slot_start,
        run.slot_end,
        run.catalog_revision,
    )
    if row is None:
        return run  # of a catalog, which has no intervals
    return run._replace(intervals_present=row[0], intervals_expected=row[1], silent_meter_count=row[2])


async def parts_of(connection: AnyConnection, organization_id: int, run: Run) -> list[Part]:
    """Return the run's parts in their order."""
    rows = await connection.fetch(
        """
        SELECT part, row_count, byte_count, sha256, state, attempt_count, next_attempt_at, delivered_at,
               is_manifest
        FROM export_part WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 ORDER BY part
        """,
        organization_id,
        run.job_id,
        run.slot_start,
    )
    return [Part(*row) for row in rows]


async def attempts_of(connection: AnyConnection, organization_id: int, run: Run) -> list[Attempt]:
    """Return every attempt to deliver the run's parts, in their order."""
    rows = await connection.fetch(
        """
        SELECT part, attempt, started_at, finished_at, outcome, reason, detail
        FROM delivery_attempt WHERE organization_id = $1 AND job_id = $2 AND slot_start = $3 ORDER BY part, attempt
        """,
        organization_id,
        run.job_id,
        run.slot_start,
    )
    return [Attempt(*row) for row in rows]
