"""`meterpost jobs`: what is exported, how often, and where to."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from services.api.catalog_queries import AnyConnection, Site, platform_clock, sites
from services.api.file_settings import destination_text
from services.api.job_queries import find_job, list_jobs
from services.api.job_settings import MEASUREMENTS, TRANSPORTS, JobSettings, NewJob
from services.api.job_store import create_job, delete_job, edit_job, pause_job, resume_job
from services.cli import api_jobs
from services.cli.https_options import (
    Access,
    AuthOption,
    ClientCertificateOption,
    ManifestOption,
    UsernameOption,
    new_https,
)
from services.cli.job_destinations import (
    DirectoryOption,
    FileOptions,
    FormulasOption,
    FtpsOption,
    HostedOption,
    HostKeyOption,
    ImplicitOption,
    LineEndOption,
    Server,
    SftpOption,
    changed_destination,
    destination_facts,
    tell_next_steps,
)
from services.cli.job_options import (
    AllSitesOption,
    CaFileOption,
    DataOption,
    FrequencyOption,
    JobArgument,
    NameOption,
    ResolutionOption,
    SiteOption,
    TransportOption,
    UrlOption,
    check_needed,
    frequency_minutes,
)
from services.cli.job_texts import COLUMNS, job_json, job_row, rhythm_text, sites_text, state_text
from services.cli.secret_options import DropSecretOption, SecretOption, given_secrets
from services.cli.session import Session, command, wall_clock
from services.cli.show import utc
from services.core.catalog_records import CATALOG
from services.core.schedule import NO_RESOLUTION, first_slot
from services.core.times import parse_instant
from services.platform.errors import UserError
from services.platform.postgres import transaction

app = typer.Typer(no_args_is_help=True, help="Export jobs: what is sent, how often, and where to.")

_DATABASE = ("organization", "database", "as_json")


@command(app, "create", *_DATABASE, over_api=api_jobs.create)
async def create(
    session: Session,
    *,
    name: NameOption = None,
    data: DataOption = MEASUREMENTS,
    frequency: FrequencyOption = None,
    resolution: ResolutionOption = None,
    all_sites: AllSitesOption = False,
    site: SiteOption = None,
    transport: TransportOption = None,
    url: UrlOption = None,
    ca_file: CaFileOption = None,
    sftp: SftpOption = None,
    ftps: FtpsOption = None,
    hosted: HostedOption = False,
    directory: DirectoryOption = None,
    host_key: HostKeyOption = None,
    implicit: ImplicitOption = False,
    line_end: LineEndOption = None,
    keep_formulas: FormulasOption = None,
    auth: AuthOption = None,
    username: UsernameOption = None,
    client_certificate: ClientCertificateOption = None,
    secret: SecretOption = None,
    manifest: ManifestOption = None,
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="TIME", help="First slot at or after this; the past is a backfill."),
    ] = None,
) -> None:
    """Create an export job.

    Its first slot is the first that begins at or after --start; default: now, by the platform's clock, which is the
    arrival of the newest readings (so a replay of 2020 is scheduled as in 2020).

    Example: meterpost jobs create --name Hourly --frequency hour --resolution 60 --all-sites --url https://example.org/in
    """
    frequency = check_needed(name, data, frequency, resolution, has_sites=all_sites or bool(site))
    starts_at = None if start is None else _time(start, "--start")
    files = FileOptions(sftp, ftps, directory, host_key, implicit, line_end, keep_formulas, hosted, ca_file)
    if files.transport is not None and url is not None:
        raise UserError("give one of --url, --sftp, --ftps and --hosted")
    if transport is not None and transport not in TRANSPORTS:
        raise UserError(f"the transport {transport!r} is not known; allowed: {', '.join(TRANSPORTS)}")
    if transport is not None and transport != (files.transport or "https"):
        raise UserError(f"--transport {transport} does not fit the address; leave it out, or give --{transport}")
    given = given_secrets(secret)
    access = Access(auth, username, client_certificate)
    if files.transport is None:
        files.refuse("an HTTPS receiver")
        server = Server("https", _https_destination(session, url, ca_file, access), given.changes)
    else:
        access.refuse(f"an {files.transport.upper()} server")
        server = files.server({}, files.transport, given.changes)
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            organization = await session.organization(connection)
            chosen = await _site_ids(connection, organization.organization_id, all_sites, site)
            known = await sites(connection, organization.organization_id)
        settings = JobSettings(
            name or "",
            frequency_minutes(frequency),
            resolution or NO_RESOLUTION,
            chosen,
            server.transport,
            server.settings,
            data,
            manifest=manifest or False,
        )
        new = NewJob(organization.organization_id, settings, starts_at, server.secrets)
        job = await create_job(pool, new, wall_clock().now(), session.places.vault())
        dropped_until: datetime | None = await pool.fetchval(
            "SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1", resolution
        )
    is_shortened = dropped_until is not None and job.starts_at < dropped_until
    first = first_slot(
        max(job.starts_at, dropped_until or job.starts_at), settings.frequency_minutes, is_catalog=data == CATALOG
    )
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"first_slot_start": first.start} | given.shown_once())
        return
    session.answer.say(
        f"Created job {job.job_id} {name!r}: {rhythm_text(settings)}, {sites_text(job, known)}, "
        f"to {server.settings.get('url') or destination_text(server.transport, server.settings)}. "
        f"Its first slot is {utc(first.start)} to {utc(first.end)}."
    )
    given.say_once(session.answer)
    if is_shortened:
        session.answer.say(
            f"NOT SENT: rows of {resolution} minutes before {utc(dropped_until)} were dropped by retention, so the job "
            "cannot begin earlier."
        )
    tell_next_steps(session, job)


@command(app, "list", *_DATABASE, over_api=api_jobs.list_)
async def list_(session: Session) -> None:
    """List the export jobs."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        jobs = await list_jobs(connection, organization.organization_id)
        known = await sites(connection, organization.organization_id)
    if session.answer.as_json:
        session.answer.json({"organization": organization.name, "jobs": [job_json(job) for job in jobs]})
    elif not jobs:
        session.answer.say(f"{organization.name} has no export jobs yet: `meterpost jobs create --help`")
    else:
        session.answer.table(COLUMNS, [job_row(job, known) for job in jobs], title=f"Jobs of {organization.name}")


@command(app, "show", *_DATABASE, over_api=api_jobs.show)
async def show(session: Session, job_id: JobArgument) -> None:
    """Show one job in full."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        job = await find_job(connection, organization.organization_id, job_id)
        known = await sites(connection, organization.organization_id)
        clock = await platform_clock(connection)
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"platform_clock": clock})
        return
    facts: list[tuple[str, object]] = [
        ("Job", f"{job.job_id} {job.settings.name}"),
        ("State", state_text(job)),
        ("What", rhythm_text(job.settings)),
        ("Sites", sites_text(job, known)),
        *destination_facts(job.settings),
        ("Manifest", "after each run" if job.settings.manifest else "none"),
        ("Starts at", job.starts_at),
        ("Version", f"{job.version}, for slots from {utc(job.effective_from)}"),
        ("Next slot", job.next_slot_start or "not planned yet"),
        ("Platform's clock", clock or "no reading has arrived yet"),
    ]
    session.answer.facts(facts)


@command(app, "edit", *_DATABASE, over_api=api_jobs.edit)
async def edit(
    session: Session,
    job_id: JobArgument,
    *,
    name: NameOption = None,
    frequency: FrequencyOption = None,
    resolution: ResolutionOption = None,
    all_sites: AllSitesOption = False,
    site: SiteOption = None,
    url: UrlOption = None,
    ca_file: CaFileOption = None,
    sftp: SftpOption = None,
    ftps: FtpsOption = None,
    hosted: HostedOption = False,
    directory: DirectoryOption = None,
    host_key: HostKeyOption = None,
    implicit: ImplicitOption = False,
    line_end: LineEndOption = None,
    keep_formulas: FormulasOption = None,
    auth: AuthOption = None,
    username: UsernameOption = None,
    client_certificate: ClientCertificateOption = None,
    secret: SecretOption = None,
    drop_secret: DropSecretOption = None,
    manifest: ManifestOption = None,
) -> None:
    """Change a job from its next slot on; what is not named stays as it is."""
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            organization = await session.organization(connection)
            before = await find_job(connection, organization.organization_id, job_id)
            old = before.settings
            chosen = old.site_ids
            if all_sites or site:
                chosen = await _site_ids(connection, organization.organization_id, all_sites, site)
        files = FileOptions(sftp, ftps, directory, host_key, implicit, line_end, keep_formulas, hosted, ca_file)
        access = Access(auth, username, client_certificate)
        given = given_secrets(secret, drop_secret)
        server = changed_destination(old, files, url, access, given.changes)
        settings = JobSettings(
            old.name if name is None else name,
            old.frequency_minutes if frequency is None else frequency_minutes(frequency),
            resolution or old.resolution_minutes,
            chosen,
            server.transport,
            server.settings,
            old.data,
            old.manifest if manifest is None else manifest,
        )
        now, vault = wall_clock().now(), session.places.vault()
        key = organization.organization_id, job_id
        job = await edit_job(pool, *key, settings, now, secrets=server.secrets, vault=vault)
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"changed": job.version != before.version} | given.shown_once())
    elif job.version == before.version:
        session.answer.say(f"Nothing changed: job {job_id} is like that already.")
    else:
        session.answer.say(f"Changed job {job_id} for the slots from {utc(job.effective_from)} on.")
        given.say_once(session.answer)


@command(app, "pause", *_DATABASE, over_api=api_jobs.pause)
async def pause(session: Session, job_id: JobArgument) -> None:
    """Pause a job: slots that begin meanwhile are skipped, and recorded as skipped."""
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        changed = await pause_job(pool, organization_id, job_id)
        job = await find_job(pool, organization_id, job_id)
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"changed": changed})
    else:
        done = f"Paused job {job_id}" if changed else f"Nothing changed: job {job_id} is paused already"
        session.answer.say(f"{done}; slots from {utc(job.paused_from)} on are skipped.")


@command(app, "resume", *_DATABASE, over_api=api_jobs.resume)
async def resume(session: Session, job_id: JobArgument) -> None:
    """Resume a job that is paused, or that was stopped because its receiver refused for good."""
    async with session.pool() as pool:
        organization_id = await _organization_id(session, pool)
        changed = await resume_job(pool, organization_id, job_id, wall_clock().now())
        job = await find_job(pool, organization_id, job_id)
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"changed": changed})
    else:
        session.answer.say(f"Resumed job {job_id}." if changed else f"Nothing changed: job {job_id} is active already.")


@command(app, "delete", *_DATABASE, over_api=api_jobs.delete)
async def delete(session: Session, job_id: JobArgument) -> None:
    """Delete a job. What it has sent stays on record."""
    async with session.pool() as pool:
        job = await delete_job(pool, await _organization_id(session, pool), job_id, wall_clock().now())
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "deleted": True})
    else:
        session.answer.say(f"Deleted job {job_id} {job.settings.name!r}.")


async def _organization_id(session: Session, pool: Any) -> int:
    async with transaction(pool) as connection:
        return (await session.organization(connection)).organization_id


async def _site_ids(
    connection: AnyConnection, organization_id: int, all_sites: bool, named: list[str] | None
) -> tuple[int, ...] | None:
    """Return the sites that were named, or None for all."""
    if all_sites and named:
        raise UserError("give either --all-sites or --site, not both")
    if all_sites or not named:
        return None
    known = await sites(connection, organization_id)
    return tuple(sorted({_site_id(known, text) for text in named}))


def _site_id(known: list[Site], text: str) -> int:
    matching = [one.site_id for one in known if one.name == text] or [
        one.site_id for one in known if str(one.site_id) == text
    ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UserError(f"several sites are named {text!r}; give the id instead: {', '.join(map(str, matching))}")
    some = ", ".join(repr(one.name) for one in known[:8]) + (", …" if len(known) > 8 else "")
    raise UserError(f"there is no site {text!r}; there are: {some}" if known else "there is no site yet")


def _https_destination(session: Session, url: str | None, ca_file: Path | None, access: Access) -> dict[str, Any]:
    if url is not None:
        return new_https(url, ca_file, access)
    demo = session.places.demo_receiver()
    if demo is None:
        raise UserError(
            "say where to send to by --url https://…, --sftp or --ftps "
            "(no demo with a receiver of its own is running here)"
        )
    session.answer.note(f"without --url it goes to the demo's receiver: {demo.url} (its CA: {demo.ca_file})")
    return new_https(demo.url, ca_file or demo.ca_file, access)


def _time(text: str, option: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
