"""Export jobs: created, shown, changed, copied, paused, ended."""

from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from services.api.http.call import Call
from services.api.http.decoding import Instant, Name
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import Cursor, Limit, link, page, read_cursor
from services.api.http.problems import invalid, not_found
from services.api.http.routes.job_forms import (
    JobBody,
    JobChanges,
    JobShown,
    checked_resolution,
    new_settings,
    shown,
    to_stored,
    transport_of,
)
from services.api.job_queries import Job, JobFilter, find_job, jobs_page
from services.api.job_settings import JobSettings, NewJob
from services.api.job_store import create_job, delete_job, edit_job, locked_job, pause_job, resume_job
from services.core.catalog_records import CATALOG
from services.core.schedule import FREQUENCY_NAMES, Slot, first_slot, next_slot
from services.core.transport_secrets import SEALED, job_place
from services.core.windows import DEFAULT_GRACE
from services.platform.errors import UserError

State = Literal["active", "paused", "stopped", "paused by failures"]
SLOTS = 5


class Jobs(msgspec.Struct, frozen=True):
    """A page of jobs."""

    jobs: list[JobShown]
    next_cursor: str | None


class JobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which jobs, in which order."""

    search: Annotated[str, msgspec.Meta(max_length=200, description="Part of the name.")] | None = None
    state: State | None = None
    transport: Literal["https", "sftp", "ftps"] | None = None
    sort: Literal["job_id", "name"] = "job_id"
    limit: Limit = 100
    cursor: Cursor | None = None


class CopyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the copy is called."""

    name: Name


class SlotShown(msgspec.Struct, frozen=True):
    """A period that a run covers; due when all its windows are closed, which `due_at` is at the earliest.

    A catalog is that of the slot's end, and due then.
    """

    start: Instant
    end: Instant
    due_at: Instant


class Slots(msgspec.Struct, frozen=True):
    """The slots that come next."""

    slots: list[SlotShown]


async def show_jobs(call: Call) -> Answer:
    """List jobs."""
    query = call.query(JobsQuery)
    after = read_cursor(query, [str, int])
    wanted = JobFilter(query.search, query.state, query.transport, call.caller.site_ids, query.sort == "name")
    last = None if after is None else (after[0], after[1])
    found = await jobs_page(call.connection, call.organization_id, wanted, last, query.limit + 1)
    rows, cursor = page(query, found, lambda one: [one[1], one[0].job_id])
    return Answer(Jobs([shown(job) for job, _key in rows], cursor), headers=link(call, cursor))


async def show_job(call: Call) -> Answer:
    """Show a job."""
    return Answer(shown(await find(call)))


async def new_job(call: Call) -> Answer:
    """Create a job."""
    body = call.body(JobBody)
    settings, secrets = new_settings(body)
    _check_sites(call, settings)
    new = NewJob(call.organization_id, settings, body.starts_at, secrets)
    job = shown(await create_job(call.connection, new, call.now, call.means.vault))
    await call.audit("job.create", job.job_id, None, job)
    return Answer(job, 201, {"Location": f"/v1/jobs/{job.job_id}"})


async def change_job(call: Call) -> Answer:
    """Change a job from its next slot on."""
    changes = call.body(JobChanges)
    before = await find(call, lock=True)
    call.match(shown(before))
    settings, secrets = _changed(before.settings, changes)
    _check_sites(call, settings)
    after = await edit_job(
        *(call.connection, call.organization_id, before.job_id, settings, call.now),
        secrets=secrets or None,
        vault=call.means.vault,
    )
    if shown(after) != shown(before):
        await call.audit("job.edit", before.job_id, shown(before), shown(after))
    return Answer(shown(after))


async def end_job(call: Call) -> Answer:
    """End a job for good; its runs stay on record."""
    before = await find(call, lock=True)
    call.match(shown(before))
    await delete_job(call.connection, call.organization_id, before.job_id, call.now)
    await call.audit("job.delete", before.job_id, shown(before), None)
    return Answer(None, 204)


async def copy_job(call: Call) -> Answer:
    """Create a job like another one, its secrets included, that begins now."""
    source = await find(call)
    settings = replace(source.settings, name=call.body(CopyBody).name)
    public = {name: value for name, value in settings.transport_settings.items() if name != SEALED}
    vault = call.means.vault
    sealed = settings.transport_settings.get(SEALED, {})
    secrets = {
        name: vault.open(text, job_place(call.organization_id, source.job_id, name)) for name, text in sealed.items()
    }
    new = NewJob(call.organization_id, replace(settings, transport_settings=public), None, secrets)
    job = shown(await create_job(call.connection, new, call.now, vault))
    await call.audit("job.create", job.job_id, None, job)
    return Answer(job, 201, {"Location": f"/v1/jobs/{job.job_id}"})


async def pause(call: Call) -> Answer:
    """Skip the slots that begin from now on."""
    before = await find(call, lock=True)
    await pause_job(call.connection, call.organization_id, before.job_id)
    return await _moved(call, before, "job.pause")


async def resume(call: Call) -> Answer:
    """End a pause, and lift a stop."""
    before = await find(call, lock=True)
    await resume_job(call.connection, call.organization_id, before.job_id, call.now)
    return await _moved(call, before, "job.resume")


async def show_slots(call: Call) -> Answer:
    """Show the next slots and when they are due."""
    job = await find(call)
    frequency, resolution = job.settings.frequency_minutes, job.settings.resolution_minutes
    grace = await call.connection.fetchval(
        "SELECT grace FROM window_grace WHERE resolution_minutes = $1 ORDER BY from_start DESC LIMIT 1", resolution
    )
    is_catalog = job.settings.data == CATALOG
    slots: list[Slot] = []
    for _number in range(SLOTS):
        if slots:
            slot = next_slot(slots[-1].end, frequency, resolution)
        elif job.next_slot_start is not None:
            slot = next_slot(job.next_slot_start, frequency, resolution)
        else:
            slot = first_slot(job.starts_at, frequency, is_catalog=is_catalog)
        slots.append(slot)
    due_after = timedelta() if is_catalog else grace or DEFAULT_GRACE
    return Answer(Slots([SlotShown(slot.start, slot.end, slot.end + due_after) for slot in slots]))


async def find(call: Call, *, lock: bool = False) -> Job:
    """Return the job of the path. Raises Problem where the caller may see none of this id."""
    job_id = call.id("job_id", "job")
    look = locked_job if lock else find_job
    try:
        job = await look(call.connection, call.organization_id, job_id)
    except UserError:
        raise not_found(f"job {job_id}") from None
    if not is_visible(call, job):
        raise not_found(f"job {job_id}")
    return job


def is_visible(call: Call, job: Job) -> bool:
    """Tell whether every site of the job is within the caller's scope."""
    held = call.caller.grant.site_ids
    return held is None or (job.settings.site_ids is not None and set(job.settings.site_ids) <= set(held))


async def _moved(call: Call, before: Job, action: str) -> Answer:
    after = shown(await find_job(call.connection, call.organization_id, before.job_id))
    if after != shown(before):
        await call.audit(action, before.job_id, shown(before), after)
    return Answer(after)


def _changed(before: JobSettings, changes: JobChanges) -> tuple[JobSettings, dict[str, str | None]]:
    unset = msgspec.UNSET
    frequency = before.frequency_minutes if changes.frequency is unset else FREQUENCY_NAMES[changes.frequency]
    wanted = before.resolution_minutes if changes.resolution_minutes is unset else changes.resolution_minutes
    resolution = checked_resolution(before.data, frequency, wanted)
    secrets: dict[str, str | None] = dict(changes.secrets)
    transport, public = before.transport, dict(before.transport_settings)
    if changes.destination is not unset:
        kept = before.transport_settings.get(SEALED, {})
        replaced = before.transport_settings if transport_of(changes.destination) == before.transport else {}
        transport, public, secrets = to_stored(changes.destination, secrets, replaced)
        if transport == before.transport:
            public |= {SEALED: kept} if kept else {}
    sites = before.site_ids
    if changes.site_ids is not unset:
        sites = None if changes.site_ids is None else tuple(sorted(set(changes.site_ids)))
    settings = replace(
        before,
        name=before.name if changes.name is unset else changes.name,
        frequency_minutes=frequency,
        resolution_minutes=resolution,
        site_ids=sites,
        transport=transport,
        transport_settings=public,
        manifest=before.manifest if changes.manifest is unset else changes.manifest,
    )
    return settings, secrets


def _check_sites(call: Call, settings: JobSettings) -> None:
    """Raise Problem where the job would send sites that its author may not see."""
    held = call.caller.grant.site_ids
    if held is None:
        return
    if settings.site_ids is None:
        raise invalid("site_ids", "name the sites: the caller's rights do not reach all of them")
    if missing := sorted(set(settings.site_ids) - set(held)):
        raise invalid("site_ids", f"the organization has no site with the id {', '.join(map(str, missing))}")


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/jobs", "list_jobs", "Export jobs"),
        *(show_jobs, "viewer", Jobs),
        query=JobsQuery,
    ),
    Endpoint(
        *("POST", "/v1/jobs", "create_job", "Create an export job"),
        *(new_job, "exporter", JobShown, 201),
        body=JobBody,
        body_form="json",
        is_create=True,
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/jobs/{job_id}", "show_job", "An export job"),
        *(show_job, "viewer", JobShown),
        has_etag=True,
    ),
    Endpoint(
        *("PATCH", "/v1/jobs/{job_id}", "edit_job", "Change a job from its next slot on"),
        *(change_job, "exporter", JobShown),
        body=JobChanges,
        body_form="json",
        has_etag=True,
    ),
    Endpoint(
        *("DELETE", "/v1/jobs/{job_id}", "delete_job", "End a job; its runs stay on record"),
        *(end_job, "exporter", None, 204),
        has_etag=True,
    ),
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/duplicate", "duplicate_job", "Create a job like this one, its secrets included"),
        *(copy_job, "exporter", JobShown, 201),
        body=CopyBody,
        body_form="json",
        is_create=True,
        has_etag=True,
    ),
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/pause", "pause_job", "Skip the slots that begin from now on"),
        *(pause, "exporter", JobShown),
        codes=("conflict",),
    ),
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/resume", "resume_job", "End a pause, and lift a stop"),
        *(resume, "exporter", JobShown),
        codes=("conflict",),
    ),
    Endpoint(
        *("GET", "/v1/jobs/{job_id}/next-slots", "show_next_slots", "The next five slots and when they are due"),
        *(show_slots, "viewer", Slots),
    ),
)
