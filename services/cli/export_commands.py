"""`meterpost exports`: any range of measurements, as the readings are now or were known then, as a file."""

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from services.api.catalog_queries import AnyConnection
from services.api.export_downloads import download_of, sign_link, stream
from services.api.manual_exports import (
    ManualExport,
    cancel_export,
    create_export,
    find_export,
    list_exports,
    rows_kept_from,
)
from services.cli import choosing
from services.cli.durations import parse_duration
from services.cli.export_progress import watch, where
from services.cli.operator import operator_name
from services.cli.session import Session, command, wall_clock
from services.cli.show import Column, utc
from services.core.manual_export import ExportFormat, WantedExport, WhenFull
from services.platform.errors import MeterpostError, UserError
from services.platform.postgres import transaction

app = typer.Typer(no_args_is_help=True, help="Exports that you ask for: any range, as a file to download.")

_DATABASE = ("organization", "database", "as_json")
_EXPORTS = (
    Column("Export", number=True),
    Column("State", whole=True),
    Column("Done", number=True),
    Column("From", whole=True),
    Column("To", whole=True),
    Column("Min", number=True),
    Column("Format", whole=True),
    Column("Rows", number=True),
    Column("Bytes", number=True),
    Column("Kept until", whole=True),
    Column("By"),
)
_Id = Annotated[int, typer.Argument(metavar="EXPORT", help="Its number.", show_default=False)]


class ExportUnsuccessfulError(MeterpostError):
    """There is no file at the end."""


@command(app, "create", *_DATABASE)
async def create(
    session: Session,
    *,
    from_: choosing.From = None,
    to: choosing.To = None,
    resolution: Annotated[int, typer.Option(metavar="MINUTES", help="1, 5, 15 or 60.")] = 15,
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="CSV or JSON Lines as jobs send them, or Parquet.")
    ] = ExportFormat.CSV,
    site: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME_OR_ID", help="Only of this site; again for more.", show_default=False),
    ] = None,
    meter: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="Only of this meter; again for more.", show_default=False)
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of", metavar="TIME", help="As it was known then; default: the newest versions.", show_default=False
        ),
    ] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Wait for a turn where three are unfinished already.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch until the file is there.")] = False,
) -> None:
    """Ask for the measurements of a range, up to a year, computed from the readings as they are now.

    No grace bounds them: what came late is in, and windows that are not closed yet are, too.
    """
    start, end = choosing.span(from_, to)
    known_at = None if as_of is None else choosing.instant(as_of, "--as-of")
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            organization = (await session.organization(connection)).organization_id
            sites = await _site_ids(connection, organization, site)
            wanted = WantedExport(start, end, resolution, format_, sites, meter or None, known_at)
            when_full = WhenFull.WAIT if queue else WhenFull.REFUSE
            export_id = await create_export(connection, organization, operator_name(), wanted, when_full)
            export = await find_export(connection, organization, export_id)
            kept_from = await rows_kept_from(connection, resolution)
        if kept_from is not None and start < kept_from:
            session.answer.note(f"windows before {utc(kept_from)} are no longer kept; there the export has no rows")
        if wait:
            session.answer.note(f"export {export_id} was asked for; Ctrl-C leaves it to itself")
            export = await watch(pool, session.answer, organization, export_id)
    _tell(session, export)
    if not wait:
        session.answer.say(f"`meterpost exports show {export_id} --wait` watches it.")
    if wait:
        _refuse_without_file(export)


@command(app, "list", *_DATABASE)
async def list_(
    session: Session,
    *,
    state: Annotated[
        str | None,
        typer.Option(metavar="STATE", help="waiting, running, done, failed, cancelled or expired.", show_default=False),
    ] = None,
    limit: choosing.Limit = 20,
) -> None:
    """List exports, the newest first."""
    known = ("waiting", "running", "done", "failed", "cancelled", "expired")
    if state is not None and state not in known:
        raise UserError(f"--state is {state!r}; there are: {', '.join(known)}")
    async with session.pool() as pool, transaction(pool) as connection:
        organization = (await session.organization(connection)).organization_id
        states = None if state is None else [state]
        found = await list_exports(connection, organization, limit=limit or 1_000_000, states=states)
    if session.answer.as_json:
        session.answer.json([_json(export) for export in found])
    elif found:
        session.answer.table(_EXPORTS, map(_row, found))
    else:
        session.answer.say("There are no exports; `meterpost exports create` asks for one.")


@command(app, "show", *_DATABASE)
async def show(
    session: Session,
    export_id: _Id,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Watch until it is over.")] = False,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Sign a link to the file, good for so long (15m, 2h), for whoever has the API's address.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show an export: what was asked for, how far it is, the file's size and SHA-256."""
    lifetime = None if link is None else parse_duration(link, "--link")
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            organization = (await session.organization(connection)).organization_id
            export = await find_export(connection, organization, export_id)
        if wait and not export.is_over:
            export = await watch(pool, session.answer, organization, export_id)
    _tell(session, export, None if lifetime is None else _link(session, organization, export, lifetime))
    if wait:
        _refuse_without_file(export)


@command(app, "cancel", *_DATABASE)
async def cancel(session: Session, export_id: _Id) -> None:
    """Give an export up. What was written of it is removed."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = (await session.organization(connection)).organization_id
        export = await cancel_export(connection, organization, export_id, operator_name())
    if session.answer.as_json:
        session.answer.json(_json(export))
    else:
        session.answer.say(f"Export {export_id} {'is being cancelled' if export.is_cancelling else 'is cancelled'}.")


@command(app, "download", *_DATABASE)
async def download(
    session: Session,
    export_id: _Id,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Default: the export's own name, here.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Download a finished export from the store, and check its size and SHA-256."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = (await session.organization(connection)).organization_id
        export = await find_export(connection, organization, export_id)
    wanted = download_of(organization, export, wall_clock().now())
    target = output or Path(wanted.file_name)
    if target.is_dir():
        target /= wanted.file_name
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: choose another name by --output, or add --overwrite")
    objects = await asyncio.to_thread(session.places.export_store)
    partial = target.with_name(target.name + ".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            async for piece in stream(objects, wanted):
                file.write(piece)
                digest.update(piece)
        if digest.digest() != wanted.sha256:
            raise ExportUnsuccessfulError(
                f"what the store gave is not what was put there (SHA-256 {digest.hexdigest()} instead of "
                f"{wanted.sha256.hex()}): export anew"
            )
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    if session.answer.as_json:
        session.answer.json({"file": str(target), "bytes": wanted.byte_count, "sha256": wanted.sha256.hex()})
    else:
        session.answer.say(f"{target}: {wanted.byte_count:,} bytes, SHA-256 {wanted.sha256.hex()}")


async def _site_ids(connection: AnyConnection, organization_id: int, chosen: Sequence[str] | None) -> list[int] | None:
    if not chosen:
        return None
    found = [await choosing.site_id(connection, organization_id, one) for one in chosen]
    return [site_id for site_id in found if site_id is not None]


def _link(session: Session, organization_id: int, export: ManualExport, lifetime: timedelta) -> dict[str, Any]:
    link = sign_link(session.places.vault(), organization_id, export, wall_clock().now(), lifetime)
    return {"token": link.token, "expires_at": link.expires_at}


def _refuse_without_file(export: ManualExport) -> None:
    if export.state != "done":
        why = f": {export.problem}" if export.problem else ""
        raise ExportUnsuccessfulError(f"export {export.export_id} is {export.state}{why}")


def _tell(session: Session, export: ManualExport, link: dict[str, Any] | None = None) -> None:
    if session.answer.as_json:
        session.answer.json(_json(export) if link is None else {**_json(export), "link": link})
        return
    wanted = export.wanted
    stands = where(export) if not export.is_over else export.problem or ""
    facts: list[tuple[str, object]] = [
        ("Export", f"{export.export_id} ({export.state}{'; ' + stands if stands else ''})"),
        ("Windows", f"{utc(wanted.start)} to {utc(wanted.end)}, {wanted.resolution_minutes} minutes"),
        ("Versions", "the newest" if wanted.known_at is None else f"as known at {utc(wanted.known_at)}"),
        ("Sites", "all" if wanted.site_ids is None else ", ".join(map(str, wanted.site_ids))),
        ("Meters", "all" if wanted.meter_ids is None else ", ".join(map(str, wanted.meter_ids))),
        ("Asked for", f"{utc(export.requested_at)} by {export.requested_by}"),
        ("Rows", export.row_count),
    ]
    if export.sha256 is not None:
        facts += [
            ("File", export.file_name),
            ("Bytes", export.byte_count),
            ("SHA-256", export.sha256.hex()),
            ("Kept until", export.expires_at),
        ]
    if link is not None:
        facts += [("Token", link["token"]), ("Good until", link["expires_at"])]
    session.answer.facts(facts)


def _row(export: ManualExport) -> tuple[object, ...]:
    wanted = export.wanted
    return (
        str(export.export_id),
        "cancelling" if export.is_cancelling else export.state,
        f"{export.share:.0%}",
        wanted.start,
        wanted.end,
        wanted.resolution_minutes,
        wanted.format.value,
        export.row_count,
        export.byte_count,
        export.expires_at if export.state == "done" else None,
        export.requested_by,
    )


def _json(export: ManualExport) -> dict[str, object]:
    wanted = export.wanted
    return {
        "export": export.export_id,
        "state": export.state,
        "cancelling": export.is_cancelling,
        "from": wanted.start,
        "to": wanted.end,
        "resolution": wanted.resolution_minutes,
        "format": wanted.format.value,
        "sites": wanted.site_ids,
        "meters": wanted.meter_ids,
        "as_of": wanted.known_at,
        "requested_by": export.requested_by,
        "requested_at": export.requested_at,
        "progress": round(export.share, 4),
        "position": export.position,
        "rows": export.row_count,
        "file": export.file_name if export.sha256 is not None else None,
        "bytes": export.byte_count,
        "sha256": export.sha256,
        "started_at": export.started_at,
        "finished_at": export.finished_at,
        "kept_until": export.expires_at if export.state == "done" else None,
        "problem_code": export.problem_code,
        "problem": export.problem,
    }
