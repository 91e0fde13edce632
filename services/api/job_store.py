"""The only SQL that writes export jobs: their versions, pauses and end.

Times of slots are the platform's clock (the arrival of readings), so a replay is scheduled as it was in its own days.
Where nothing has arrived yet, a job stands at its start. `now` is the wall clock, for what happens to the job itself.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.api.catalog_queries import platform_clock
from services.api.job_queries import Job, find_job
from services.api.job_secrets import SecretChanges, check_files, check_https, sealed_settings
from services.api.job_settings import JobSettings, NewJob
from services.core.times import ceil_to
from services.platform.errors import UserError
from services.platform.postgres import Connection, Pool, transaction
from services.platform.secrets import Vault

NO_KEYS = Vault({})


async def create_job(pool: Pool | Connection, new: NewJob, now: datetime, vault: Vault = NO_KEYS) -> Job:
    """Create an active job and return it. Raises UserError for settings, secrets or sites that are wrong."""
    new.settings.check()
    async with transaction(pool) as connection:
        await _check_sites(connection, new.organization_id, new.settings.site_ids)
        starts_at = new.starts_at or await platform_clock(connection) or now
        job_id: int = await connection.fetchval(
            """
            INSERT INTO export_job (organization_id, starts_at, created_at) VALUES ($1, $2, $3) RETURNING job_id
            """,
            new.organization_id,
            starts_at,
            now,
        )
        settings = _with_secrets(vault, new.organization_id, job_id, new.settings, new.secrets)
        await _add_version(connection, new.organization_id, job_id, 1, starts_at, settings, now)
        return await find_job(connection, new.organization_id, job_id)


async def edit_job(
    pool: Pool | Connection,
    organization_id: int,
    job_id: int,
    settings: JobSettings,
    now: datetime,
    *,
    secrets: SecretChanges | None = None,
    vault: Vault = NO_KEYS,
) -> Job:
    """Give the job new settings from the next slot on and return it; settings that are the same change nothing.

    Secrets that are not named stay as `settings` has them, sealed. Where the frequency changes, the next slot is one
    that begins with a slot of the old frequency too, so no period is exported twice or left out.
    """
    settings.check()
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        if secrets or settings.transport_settings != job.settings.transport_settings:
            settings = _with_secrets(vault, organization_id, job_id, settings, secrets or {})
        if job.settings == settings:
            return job
        await _check_sites(connection, organization_id, settings.site_ids)
        clock = await platform_clock(connection) or job.starts_at
        longest = max(job.settings.frequency_minutes, settings.frequency_minutes)
        # Not before the version in force, which may itself begin only later.
        from_then_on = ceil_to(max(clock, job.starts_at, job.effective_from), timedelta(minutes=longest))
        await _add_version(connection, organization_id, job_id, job.version + 1, from_then_on, settings, now)
        return await find_job(connection, organization_id, job_id)


async def pause_job(pool: Pool | Connection, organization_id: int, job_id: int) -> bool:
    """Skip the slots that begin from now on. Returns False where the job was paused already."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        if job.paused_from is not None:
            return False
        # Paused and resumed at one reading of the platform's clock, and paused again: the same pause goes on.
        await connection.execute(
            """
            INSERT INTO export_job_pause (organization_id, job_id, paused_from) VALUES ($1, $2, $3)
            ON CONFLICT (organization_id, job_id, paused_from) DO UPDATE SET resumed_from = NULL
            """,
            organization_id,
            job_id,
            await platform_clock(connection) or job.starts_at,
        )
        return True


async def resume_job(pool: Pool | Connection, organization_id: int, job_id: int, now: datetime) -> bool:
    """End a pause, and lift a stop that delivery made. Returns False where there was neither."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        if job.state == "active":
            return False
        await connection.execute(
            """
            UPDATE export_job_pause SET resumed_from = GREATEST(paused_from, $3)
            WHERE organization_id = $1 AND job_id = $2 AND resumed_from IS NULL
            """,
            organization_id,
            job_id,
            await platform_clock(connection) or job.starts_at,
        )
        await lift_stop(connection, organization_id, job_id, now)
        return True


async def lift_stop(connection: Connection, organization_id: int, job_id: int, now: datetime) -> None:
    """Lift a stop of delivery's, if there is one; the transaction holds the job."""
    # A stop is dated by the clock of delivery's host, which may be ahead of ours: later than the stop, whatever.
    await connection.execute(
        """
        UPDATE export_job SET resumed_at = GREATEST(
            $3, (SELECT stopped_at + interval '1 microsecond' FROM export_job_progress
                 WHERE organization_id = $1 AND job_id = $2))
        WHERE job_id = $2
        """,
        organization_id,
        job_id,
        now,
    )


async def delete_job(pool: Pool | Connection, organization_id: int, job_id: int, now: datetime) -> Job:
    """End the job for good; its runs stay on record. Returns the job as it was."""
    async with transaction(pool) as connection:
        job = await locked_job(connection, organization_id, job_id)
        await connection.execute("UPDATE export_job SET deleted_at = $2 WHERE job_id = $1", job_id, now)
        return job


async def locked_job(connection: Connection, organization_id: int, job_id: int) -> Job:
    """Return the job and lock it until the transaction ends. Raises UserError where there is none."""
    await connection.execute("SELECT 1 FROM export_job WHERE job_id = $1 FOR UPDATE", job_id)
    return await find_job(connection, organization_id, job_id)


def _with_secrets(
    vault: Vault, organization_id: int, job_id: int, settings: JobSettings, changes: SecretChanges
) -> JobSettings:
    transport_settings = sealed_settings(vault, organization_id, job_id, settings.transport_settings, changes)
    if settings.transport == "https":
        check_https(vault, organization_id, job_id, transport_settings, changes)
    else:
        check_files(settings.transport, transport_settings, changes)
    return replace(settings, transport_settings=transport_settings)


async def _check_sites(connection: Connection, organization_id: int, site_ids: Sequence[int] | None) -> None:
    if site_ids is None:
        return
    rows = await connection.fetch(
        "SELECT site_id FROM site WHERE organization_id = $1 AND site_id = ANY($2::int[])",
        organization_id,
        list(site_ids),
    )
    missing = sorted(set(site_ids) - {row["site_id"] for row in rows})
    if missing:
        raise UserError(f"the organization has no site with the id {', '.join(map(str, missing))}")


async def _add_version(
    connection: Connection,
    organization_id: int,
    job_id: int,
    version: int,
    effective_from: datetime,
    settings: JobSettings,
    now: datetime,
) -> None:
    await connection.execute(
        """
        INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data,
                                        frequency_minutes, resolution_minutes, site_ids, transport,
                                        transport_settings, manifest, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12, $13)
        """,
        organization_id,
        job_id,
        version,
        effective_from,
        settings.name,
        settings.data,
        settings.frequency_minutes,
        settings.resolution_minutes,
        None if settings.site_ids is None else list(settings.site_ids),
        settings.transport,
        json.dumps(dict(settings.transport_settings)),
        settings.manifest,
        now,
    )
