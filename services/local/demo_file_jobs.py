"""The demo's jobs that send CSV files, one for each receiver and one for the hosted folder."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.api.catalog_queries import platform_clock
from services.api.job_queries import list_jobs
from services.api.job_settings import JobSettings, NewJob
from services.api.job_store import create_job, edit_job
from services.core.transport_secrets import SEALED
from services.local.demo_catalog import ORGANIZATION
from services.local.demo_hosted import HOSTED_JOB
from services.local.demo_receivers import FileReceiver
from services.platform.postgres import Pool, transaction
from services.platform.secrets import Vault

_HOSTED_NAME = "Every 5 minutes, 1-minute data, CSV to the hosted folder"
_FREQUENCY_MINUTES, _RESOLUTION_MINUTES = 5, 1


async def ensure_file_jobs(
    pool: Pool,
    servers: Sequence[FileReceiver],
    vault: Vault,
    *,
    with_hosted: bool,
    starts_at: datetime,
    now: datetime,
) -> None:
    """Create the job of each transport, or point it at the receiver's present address; one that was deleted stays so.

    New jobs begin at `starts_at`, in an older instance with the present.
    """
    async with transaction(pool) as connection:
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        known = {row["name"] for row in await connection.fetch("SELECT DISTINCT name FROM export_job_version")}
        jobs = {job.settings.name: job for job in await list_jobs(connection, organization_id)}
        clock = await platform_clock(connection)
    for server in servers:
        name = f"Every 5 minutes, 1-minute data, CSV over {server.transport.upper()}"
        if name in jobs:
            job = jobs[name]
            sealed = {SEALED: job.settings.transport_settings.get(SEALED, {})}
            changed = replace(job.settings, transport_settings=server.settings | sealed)
            await edit_job(pool, organization_id, job.job_id, changed, now, secrets=server.secrets, vault=vault)
        elif name not in known:
            wanted = JobSettings(
                name, _FREQUENCY_MINUTES, _RESOLUTION_MINUTES, None, server.transport, server.settings, manifest=True
            )
            new = NewJob(organization_id, wanted, starts_at if clock is None else clock, server.secrets)
            await create_job(pool, new, now, vault)
    if with_hosted and _HOSTED_NAME not in known:
        wanted = JobSettings(
            _HOSTED_NAME, _FREQUENCY_MINUTES, _RESOLUTION_MINUTES, None, "sftp", HOSTED_JOB, manifest=True
        )
        await create_job(pool, NewJob(organization_id, wanted, starts_at if clock is None else clock), now, vault)
