"""`meterpost jobs test` and `jobs host-key`: does the connection to a job's server work, and whom to trust."""

from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any

import typer

from services.api.file_settings import approve, withdraw
from services.api.job_queries import Job, find_job
from services.api.job_store import edit_job
from services.cli import api_connections, job_commands
from services.cli.job_options import JobArgument
from services.cli.session import Session, command, wall_clock
from services.core.file_transfer import HOSTED, fingerprint
from services.platform.errors import UserError
from services.platform.outbound import Outbound, parse_networks
from services.platform.postgres import Pool, transaction

app = job_commands.app
_DATABASE = ("organization", "database", "as_json")
EXIT_FAILED = 1
_CONNECT = timedelta(seconds=10)
_TOTAL = timedelta(seconds=30)


@command(job_commands.app, "test", *_DATABASE, over_api=api_connections.test)
async def test(session: Session, job_id: JobArgument) -> None:
    """Try the connection to a job's server, step by step, from this machine; over the HTTP API from where it sends.

    SFTP and FTPS: a small file is written, renamed and removed. HTTPS: nothing is posted, because a receiver would take
    it for an export; what it answers is seen at the first delivery. The exit code is 1 where a step failed.
    """
    async with session.pool() as pool:
        job = await _job(session, pool, job_id)
    steps = []
    async for step in _steps(session, job):
        steps.append(step)
        if not session.answer.as_json:
            session.answer.say(f"{'ok    ' if step.passed else 'FAILED'}  {step.name}: {step.sentence}")
    passed = all(step.passed for step in steps)
    if session.answer.as_json:
        found = [{"step": step.name, "passed": step.passed, "sentence": step.sentence} for step in steps]
        session.answer.json({"job_id": job_id, "passed": passed, "steps": found})
    elif passed and job.settings.transport == "https":
        session.answer.note("nothing was posted: whether the receiver takes exports is seen at the first delivery")
    if not passed:
        raise typer.Exit(EXIT_FAILED)


@command(job_commands.app, "host-key", *_DATABASE, over_api=api_connections.host_key)
async def host_key(
    session: Session,
    job_id: JobArgument,
    *,
    approve_: Annotated[
        str | None,
        typer.Option("--approve", metavar="SHA256:…", help="Trust the key that the server shows, if it is this one."),
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="SHA256:…", help="No longer trust this one.")
    ] = None,
) -> None:
    """Show the SFTP server's key and those that are approved; approve the one it shows, or withdraw one.

    Compare the fingerprint with what the server's operator tells you: whoever is in between shows another one.
    """
    async with session.pool() as pool:
        job = await _job(session, pool, job_id)
        if job.settings.transport != "sftp":
            raise UserError(
                f"job {job_id} sends over {job.settings.transport.upper()}: only SFTP servers have host keys"
            )
        settings = job.settings.transport_settings
        if HOSTED in settings:
            raise UserError(f"job {job_id} goes to the hosted folder, whose keys the operator keeps")
        shown = await _shown_key(session, job)
        if approve_ is not None:
            if not shown or fingerprint(shown) != approve_:
                there = fingerprint(shown) if shown else "none that is not approved already"
                raise UserError(f"the server does not show the key {approve_}, but {there}")
            settings = approve(settings, shown)
        if remove is not None:
            settings = withdraw(settings, remove)
        if settings != job.settings.transport_settings:
            changed = replace(job.settings, transport_settings=settings)
            job = await edit_job(pool, job.organization_id, job_id, changed, wall_clock().now())
    approved = [f"{key.split()[0]} {fingerprint(key)}" for key in settings.get("host_keys", ())]
    new = f"{shown.split()[0]} {fingerprint(shown)}" if shown and approve_ is None else None
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "approved": approved, "shown_and_not_approved": new})
        return
    session.answer.say("approved: " + (", ".join(approved) or "none; nothing is sent"))
    if new is not None:
        session.answer.say(f"the server shows another one: {new}")
        session.answer.say(f"to trust it: meterpost jobs host-key {job_id} --approve {new.split()[1]}")
    if job.stopped_at is not None:
        session.answer.note(f"the job is stopped; to go on: meterpost jobs resume {job_id}")


async def _job(session: Session, pool: Pool, job_id: int) -> Job:
    async with transaction(pool) as connection:
        organization = await session.organization(connection)
        return await find_job(connection, organization.organization_id, job_id)


async def _shown_key(session: Session, job: Job) -> str:
    """Return the key that the server shows and that is not approved; empty: it shows an approved one."""
    async for step in _steps(session, job):
        if step.name == "trust":
            if not step.passed and not step.host_key:
                raise UserError(f"the server's key cannot be seen: {step.sentence}")
            return str(step.host_key)
        if not step.passed:
            raise UserError(f"the server's key cannot be seen: {step.sentence}")
    return ""


async def _steps(session: Session, job: Job) -> Any:
    # Only here, because these imports would cost every other command a fifth of a second.
    from services.delivery.model import JobKey  # noqa: PLC0415
    from services.delivery.transports import TRANSPORTS  # noqa: PLC0415
    from services.delivery.transports.base import Deadlines, Means  # noqa: PLC0415
    from services.delivery.unsealing import Discreet, unseal  # noqa: PLC0415

    unsealed = unseal(session.places.vault(), JobKey(job.organization_id, job.job_id), job.settings.transport_settings)
    outbound = Outbound(parse_networks(session.places.allowed_destinations()))
    means = Means(Deadlines(_CONNECT, _TOTAL), wall_clock(), outbound, session.places.hosted_folder())
    transport = TRANSPORTS[job.settings.transport](means)
    try:
        async for step in Discreet(transport, unsealed).check():
            yield step
    finally:
        await transport.aclose()
        outbound.close()
