"""A job as the command shows it: to people and to scripts."""

from typing import Any

from services.api.catalog_queries import Site
from services.api.file_settings import destination_text
from services.api.job_queries import Job
from services.api.job_settings import JobSettings
from services.cli.show import Column, utc
from services.core.schedule import frequency_name
from services.core.transport_secrets import public_settings

COLUMNS = (
    Column("ID", number=True),
    Column("Name"),
    Column("Every", whole=True),
    Column("Resolution", number=True),
    Column("Sites"),
    Column("To"),
    Column("State", whole=True),
)


def job_json(job: Job) -> dict[str, Any]:
    """Return a job for scripts; of its secrets only that they are set."""
    settings = job.settings
    return {
        "job_id": job.job_id,
        "name": settings.name,
        "state": job.state,
        "data": settings.data,
        "frequency": frequency_name(settings.frequency_minutes),
        "resolution_minutes": settings.resolution_minutes or None,
        "site_ids": settings.site_ids,
        "transport": settings.transport,
        "transport_settings": public_settings(settings.transport_settings),
        "manifest": settings.manifest,
        "starts_at": job.starts_at,
        "version": job.version,
        "effective_from": job.effective_from,
        "paused_from": job.paused_from,
        "stopped_at": job.stopped_at,
        "stopped_reason": job.stopped_reason,
        "stopped_detail": job.stopped_detail,
        "failing_since": job.failing_since,
        "next_slot_start": job.next_slot_start,
        "created_at": job.created_at,
    }


def job_row(job: Job, known: list[Site]) -> tuple[object, ...]:
    """Return a job as a row of `COLUMNS`."""
    settings = job.settings
    return (
        str(job.job_id),
        settings.name,
        frequency_name(settings.frequency_minutes),
        f"{settings.resolution_minutes} min" if settings.resolution_minutes else "catalog",
        sites_text(job, known),
        destination_text(settings.transport, settings.transport_settings),
        job.state,
    )


def rhythm_text(settings: JobSettings) -> str:
    """Return what is sent and how often, in a few words."""
    every = f"every {frequency_name(settings.frequency_minutes)}"
    return f"{every} at {settings.resolution_minutes} min" if settings.resolution_minutes else f"the catalog, {every}"


def sites_text(job: Job, known: list[Site]) -> str:
    """Return which sites a job exports, in a few words."""
    if job.settings.site_ids is None:
        return "all sites"
    names = [one.name for one in known if one.site_id in job.settings.site_ids]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def state_text(job: Job) -> str:
    """Return a job's state, why, and what to do about it."""
    if job.paused_from is not None:
        return f"paused from {utc(job.paused_from)} on"
    if job.stopped_at is not None:
        remedy = "recover" if job.state == "paused by failures" else "resume"
        why = f"{job.stopped_detail} ({job.stopped_reason}; once mended: `jobs {remedy}`)"
        return f"{job.state} at {utc(job.stopped_at)}: {why}"
    return "active" if job.failing_since is None else f"active, but failing since {utc(job.failing_since)}"
