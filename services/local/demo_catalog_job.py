"""The demo's job that sends the catalog, so that whoever looks at the measurements finds out what they are of."""

from datetime import datetime, timedelta

from services.api.catalog_queries import platform_clock
from services.api.job_queries import list_jobs
from services.api.job_settings import JobSettings, NewJob
from services.api.job_store import create_job
from services.core.catalog_records import CATALOG
from services.core.schedule import CATALOG_FREQUENCY_MINUTES, NO_RESOLUTION
from services.local.demo_catalog import ORGANIZATION, Destination, move_job
from services.platform.postgres import Pool, transaction
from services.platform.secrets import Vault

NAME = "Daily, the catalog"
# The slot that was over when the demo began is due at once: nobody need wait for midnight.
BEFORE = timedelta(days=1)


async def ensure_catalog_job(pool: Pool, to: Destination, vault: Vault, *, starts_at: datetime, now: datetime) -> None:
    """Create the job, or point it at the receiver's present address; one that was deleted stays so.

    `starts_at` is where the demo begins; in an older instance it is the present. Raises Unavailable.
    """
    async with transaction(pool) as connection:
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        is_known = await connection.fetchval("SELECT EXISTS (SELECT FROM export_job_version WHERE name = $1)", NAME)
        found = [job for job in await list_jobs(connection, organization_id) if job.settings.name == NAME]
        clock = await platform_clock(connection)
    for job in found:
        await move_job(pool, job, to, vault, now=now)
    if not is_known:
        daily = CATALOG_FREQUENCY_MINUTES, NO_RESOLUTION
        settings = JobSettings(NAME, *daily, None, "https", to.settings(), CATALOG, manifest=True)
        new = NewJob(organization_id, settings, (clock or starts_at) - BEFORE, to.secrets())
        await create_job(pool, new, now, vault)
