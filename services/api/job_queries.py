"""Export jobs as they stand: the newest settings, and what pauses or stops them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import asyncpg

from services.api.catalog_queries import AnyConnection
from services.api.job_settings import JobSettings
from services.platform.errors import UserError

JobState = Literal["active", "paused", "stopped", "paused by failures"]
FAILED_RUNS = "failed_runs"
"""The reason of a stop that delivery makes after several failed runs in a row."""

_JOBS = """
    SELECT job.organization_id, job.job_id, job.starts_at, job.created_at, newest.version, newest.effective_from,
           newest.name, newest.data, newest.frequency_minutes, newest.resolution_minutes, newest.site_ids,
           newest.transport, newest.transport_settings, newest.manifest, pause.paused_from, progress.next_slot_start,
           CASE WHEN job.resumed_at IS NULL OR progress.stopped_at >= job.resumed_at
                THEN progress.stopped_at END AS stopped_at,
           progress.stopped_reason, progress.stopped_detail, progress.failing_since
    FROM export_job AS job
    CROSS JOIN LATERAL (
        SELECT * FROM export_job_version AS version
        WHERE version.organization_id = job.organization_id AND version.job_id = job.job_id
        ORDER BY version.version DESC LIMIT 1
    ) AS newest
    LEFT JOIN export_job_progress AS progress
        ON progress.organization_id = job.organization_id AND progress.job_id = job.job_id
    LEFT JOIN export_job_pause AS pause
        ON pause.organization_id = job.organization_id AND pause.job_id = job.job_id AND pause.resumed_from IS NULL
    WHERE job.organization_id = $1 AND job.deleted_at IS NULL AND ($2::int IS NULL OR job.job_id = $2)
"""
_BY_ID = _JOBS + " ORDER BY job.job_id"
_FILTERED = f"""
    SELECT * FROM (
        SELECT listed.*, lower(name) COLLATE "C" AS sort_key,
               CASE WHEN paused_from IS NOT NULL THEN 'paused' WHEN stopped_at IS NULL THEN 'active'
                    WHEN stopped_reason = 'failed_runs' THEN 'paused by failures' ELSE 'stopped' END AS state
        FROM ({_JOBS}) AS listed
    ) AS job
    WHERE ($3::text IS NULL OR position(lower($3) IN lower(name)) > 0) AND ($4::text IS NULL OR state = $4)
      AND ($5::text IS NULL OR transport = $5) AND ($6::int[] IS NULL OR site_ids <@ $6)
      -- Jobs that never had such a name are left out before their newest settings are looked up, one by one.
      AND ($3 IS NULL OR job_id IN (
          SELECT job_id FROM export_job_version
          WHERE organization_id = $1 AND position(lower($3) IN lower(name)) > 0))
"""  # noqa: S608 - put together from constants
# In the order of an index, so that a page costs no more with many jobs.
_PAGE_BY_ID = f"{_FILTERED} AND job_id > $7::int ORDER BY job_id LIMIT $8"
# Compared as bytes: the order of a page must not depend on the database's language.
_PAGE_BY_NAME = f"""
    {_FILTERED} AND ($7::text IS NULL OR (sort_key, job_id) > ($7 COLLATE "C", $8::int))
    ORDER BY sort_key, job_id LIMIT $9
"""


class JobFilter(NamedTuple):
    """Which jobs are asked for; `site_ids`: those that send no other sites."""

    search: str | None = None
    state: str | None = None
    transport: str | None = None
    site_ids: Sequence[int] | None = None
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job with its newest settings, which are in force for slots that begin at or after `effective_from`."""

    organization_id: int
    job_id: int
    starts_at: datetime
    created_at: datetime
    version: int
    effective_from: datetime
    settings: JobSettings
    paused_from: datetime | None
    next_slot_start: datetime | None
    stopped_at: datetime | None
    stopped_reason: str | None
    stopped_detail: str | None
    failing_since: datetime | None
    """Wall clock: the first failed attempt since the last success, if there is one."""

    @property
    def state(self) -> JobState:
        """Whether the job runs.

        Stopped: delivery met an answer after which trying again is useless. Paused by failures: run after run failed.
        """
        if self.paused_from is not None:
            return "paused"
        if self.stopped_at is None:
            return "active"
        return "paused by failures" if self.stopped_reason == FAILED_RUNS else "stopped"


async def list_jobs(connection: AnyConnection, organization_id: int) -> list[Job]:
    """Return the organization's jobs that are not deleted, by id."""
    return [_from_row(row) for row in await connection.fetch(_BY_ID, organization_id, None)]


async def jobs_page(
    connection: AnyConnection, organization_id: int, wanted: JobFilter, after: tuple[str, int] | None, limit: int
) -> list[tuple[Job, str]]:
    """Return jobs by id or by name, each with its key in that order; `after`: key and id of the last one before."""
    key, job_id = after or (None, 0)
    filters = (organization_id, None, wanted.search, wanted.state, wanted.transport, _ints(wanted.site_ids))
    if wanted.by_name:
        rows = await connection.fetch(_PAGE_BY_NAME, *filters, key, job_id, limit)
        return [(_from_row(row), row["sort_key"]) for row in rows]
    rows = await connection.fetch(_PAGE_BY_ID, *filters, job_id, limit)
    return [(_from_row(row), "") for row in rows]


def _ints(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)


async def find_job(connection: AnyConnection, organization_id: int, job_id: int) -> Job:
    """Return one job. Raises UserError where the organization has no such job."""
    rows = await connection.fetch(_JOBS, organization_id, job_id)
    if not rows:
        raise UserError(f"there is no job {job_id}; `meterpost jobs list` shows the jobs there are")
    return _from_row(rows[0])


def _from_row(row: asyncpg.Record) -> Job:
    settings: Mapping[str, Any] = json.loads(row["transport_settings"])
    site_ids = row["site_ids"]
    return Job(
        row["organization_id"],
        row["job_id"],
        row["starts_at"],
        row["created_at"],
        row["version"],
        row["effective_from"],
        JobSettings(
            name=row["name"],
            frequency_minutes=row["frequency_minutes"],
            resolution_minutes=row["resolution_minutes"],
            site_ids=None if site_ids is None else tuple(site_ids),
            transport=row["transport"],
            transport_settings=settings,
            data=row["data"],
            manifest=row["manifest"],
        ),
        row["paused_from"],
        row["next_slot_start"],
        row["stopped_at"],
        row["stopped_reason"] if row["stopped_at"] is not None else None,
        row["stopped_detail"] if row["stopped_at"] is not None else None,
        row["failing_since"],
    )
