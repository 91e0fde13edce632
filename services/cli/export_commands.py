"""`meterpost exports`: any range of measurements, as the readings are now or were known then, as a file."""

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

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
from services.cli import api_exports, choosing
from services.cli.durations import parse_duration
from services.cli.export_files import check_target, is_wrong, told
from services.cli.export_progress import watch
from services.cli.export_texts import EXPORTS, export_json, export_row, known_state, refuse_without_file, tell
from services.cli.operator import operator_name
from services.cli.session import Session, command, wall_clock
from services.cli.show import utc
from services.core.manual_export import ExportFormat, WantedExport, WhenFull
from services.platform.errors import UserError
from services.platform.postgres import transaction

app = typer.Typer(no_args_is_help=True, help="Exports that you ask for: any range, as a file to download.")

_DATABASE = ("organization", "database", "as_json")
_Id = Annotated[int, typer.Argument(metavar="EXPORT", help="Its number.", show_default=False)]


@command(app, "create", *_DATABASE, over_api=api_exports.create)
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
    tell(session, export)
    if not wait:
        session.answer.say(f"`meterpost exports show {export_id} --wait` watches it.")
    if wait:
        refuse_without_file(export)


@command(app, "list", *_DATABASE, over_api=api_exports.list_)
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
    async with session.pool() as pool, transaction(pool) as connection:
        organization = (await session.organization(connection)).organization_id
        states = None if (wanted := known_state(state)) is None else [wanted]
        found = await list_exports(connection, organization, limit=limit or 1_000_000, states=states)
    if session.answer.as_json:
        session.answer.json([export_json(export) for export in found])
    elif found:
        session.answer.table(EXPORTS, map(export_row, found))
    else:
        session.answer.say("There are no exports; `meterpost exports create` asks for one.")


@command(app, "show", *_DATABASE, over_api=api_exports.show)
async def show(
    session: Session,
    export_id: _Id,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Watch until it is over.")] = False,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Make a link to the file, good for so long (15m, 2h), for whoever you give it to.",
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
    tell(session, export, None if lifetime is None else _link(session, organization, export, lifetime))
    if wait:
        refuse_without_file(export)


@command(app, "cancel", *_DATABASE, over_api=api_exports.cancel)
async def cancel(session: Session, export_id: _Id) -> None:
    """Give an export up. What was written of it is removed."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = (await session.organization(connection)).organization_id
        export = await cancel_export(connection, organization, export_id, operator_name())
    if session.answer.as_json:
        session.answer.json(export_json(export))
    else:
        session.answer.say(f"Export {export_id} {'is being cancelled' if export.is_cancelling else 'is cancelled'}.")


@command(app, "download", *_DATABASE, over_api=api_exports.download)
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
    """Download a finished export, and check its size and SHA-256.

    Over the HTTP API a download that broke goes on where it was, by itself or when the command is given again.
    """
    async with session.pool() as pool, transaction(pool) as connection:
        organization = (await session.organization(connection)).organization_id
        export = await find_export(connection, organization, export_id)
    wanted = download_of(export, wall_clock().now())
    target = check_target(output, wanted.file_name, overwrite=overwrite)
    objects = await asyncio.to_thread(session.places.export_store)
    partial = target.with_name(target.name + ".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            async for piece in stream(objects, wanted):
                file.write(piece)
                digest.update(piece)
        if digest.digest() != wanted.sha256:
            raise is_wrong("the store", digest.hexdigest(), wanted.sha256.hex())
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    told(session, target, wanted.byte_count, wanted.sha256.hex())


async def _site_ids(connection: AnyConnection, organization_id: int, chosen: Sequence[str] | None) -> list[int] | None:
    if not chosen:
        return None
    found = [await choosing.site_id(connection, organization_id, one) for one in chosen]
    return [site_id for site_id in found if site_id is not None]


def _link(session: Session, organization_id: int, export: ManualExport, lifetime: timedelta) -> dict[str, Any]:
    link = sign_link(session.places.vault(), organization_id, export, wall_clock().now(), lifetime)
    query = urlencode({"organization_id": organization_id, "token": link.token})
    path = f"/v1/exports/{export.export_id}/file?{query}"
    return {"token": link.token, "path": path, "expires_at": link.expires_at}
