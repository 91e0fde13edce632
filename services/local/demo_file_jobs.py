"""The demo's jobs that send CSV files, one for each receiver."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from services.api.catalog_queries import platform_clock
from services.api.job_queries import list_jobs
from services.api.job_settings import JobSettings, NewJob
from services.api.job_store import create_job, edit_job
from services.local.demo_catalog import ORGANIZATION
from services.platform.postgres import Pool, transaction

_FREQUENCY_MINUTES, _RESOLUTION_MINUTES = 5, 1


async def ensure_file_jobs(
    pool: Pool, destinations: Mapping[str, Mapping[str, Any]], *, starts_at: datetime, now: datetime
) -> None:
    """Create the job of each transport, or point it at the receiver's present address; one that was deleted stays so.

    `destinations`: settings by transport. New jobs begin at `starts_at`, in an older instance with the present.
    """
    async with transaction(pool) as connection:
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        known = {row["name"] for row in await connection.fetch("SELECT DISTINCT name FROM export_job_version")}
        jobs = {job.settings.name: job for job in await list_jobs(connection, organization_id)}
        clock = await platform_clock(connection)
    for transport, settings in destinations.items():
        name = f"Every 5 minutes, 1-minute data, CSV over {transport.upper()}"
        if name in jobs:
            job = jobs[name]
            changed = replace(job.settings, transport_settings=settings)
            await edit_job(pool, organization_id, job.job_id, changed, now)
        elif name not in known:
            wanted = JobSettings(name, _FREQUENCY_MINUTES, _RESOLUTION_MINUTES, None, transport, settings)
            await create_job(pool, NewJob(organization_id, wanted, starts_at if clock is None else clock), now)
