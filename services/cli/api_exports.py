"""`meterpost --url … exports`: what the same commands do over the HTTP API, with the same tables and JSON."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from services.api.manual_exports import ManualExport
from services.cli import choosing
from services.cli.api_download import fetch
from services.cli.api_jobs import site_ids
from services.cli.api_session import Api
from services.cli.durations import parse_duration
from services.cli.export_files import check_target, told
from services.cli.export_progress import watch_by
from services.cli.export_texts import EXPORTS, export_json, export_row, known_state, refuse_without_file, tell
from services.cli.session import Session
from services.cli.show import utc
from services.core.manual_export import ExportFormat, WantedExport
from services.core.times import iso_seconds, parse_instant
from services.platform.errors import UserError

_MINUTE = timedelta(minutes=1)


async def create(session: Session, api: Api, *, wait: bool, **given: Any) -> None:
    """Ask for an export."""
    start, end = choosing.span(given["from_"], given["to"])
    body = {
        "from": iso_seconds(start),
        "until": iso_seconds(end),
        "resolution_minutes": given["resolution"],
        "format": given["format_"].value,
        "site_ids": await site_ids(api, given["site"]) if given["site"] else None,
        "meter_ids": given["meter"] or None,
        "as_of": None if given["as_of"] is None else choosing.instant(given["as_of"], "--as-of").isoformat(),
        "if_full": "wait" if given["queue"] else "refuse",
    }
    made = await api.send("POST", "/v1/exports", body)
    export, kept_from = _export(made), made["rows_kept_from"]
    if kept_from is not None and start < parse_instant(kept_from):
        session.answer.note(
            f"windows before {utc(parse_instant(kept_from))} are no longer kept; there the export has no rows"
        )
    if wait:
        session.answer.note(f"export {export.export_id} was asked for; Ctrl-C leaves it to itself")
        export = await _watch(session, api, export.export_id)
    tell(session, export)
    if wait:
        refuse_without_file(export)
    else:
        session.answer.say(f"`meterpost exports show {export.export_id} --wait` watches it.")


async def list_(session: Session, api: Api, *, state: str | None, limit: int) -> None:
    """List exports."""
    shown = await api.pages("/v1/exports", "exports", limit or None, state=known_state(state))
    found = [_export(one) for one in shown]
    if session.answer.as_json:
        session.answer.json([export_json(export) for export in found])
    elif found:
        session.answer.table(EXPORTS, map(export_row, found))
    else:
        session.answer.say("There are no exports; `meterpost exports create` asks for one.")


async def show(session: Session, api: Api, export_id: int, *, wait: bool, link: str | None) -> None:
    """Show an export."""
    lifetime = None if link is None else parse_duration(link, "--link")
    if wait:
        await _watch(session, api, export_id)
    minutes = None if lifetime is None else max(1, lifetime // _MINUTE)
    shown = await api.get(f"/v1/exports/{export_id}", link_minutes=minutes)
    export = _export(shown)
    if lifetime is not None and shown["download"] is None:
        refuse_without_file(export)
    tell(session, export, None if lifetime is None else shown["download"])
    if wait:
        refuse_without_file(export)


async def cancel(session: Session, api: Api, export_id: int) -> None:
    """Give an export up."""
    export = _export(await api.send("POST", f"/v1/exports/{export_id}/cancel"))
    if session.answer.as_json:
        session.answer.json(export_json(export))
    else:
        session.answer.say(f"Export {export_id} {'is being cancelled' if export.is_cancelling else 'is cancelled'}.")


async def download(session: Session, api: Api, export_id: int, *, output: Path | None, overwrite: bool) -> None:
    """Download a finished export."""
    shown = await api.get(f"/v1/exports/{export_id}")
    export = _export(shown)
    if shown["download"] is None:
        if export.is_over:
            refuse_without_file(export)
        raise UserError(f"export {export_id} has no file yet: `meterpost exports show {export_id} --wait` watches it")
    file = shown["file"]
    target = check_target(output, file["name"], overwrite=overwrite)
    try:
        await fetch(session, api, export_id, shown, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    told(session, target, file["bytes"], file["sha256"])


async def _watch(session: Session, api: Api, export_id: int) -> ManualExport:
    async def look() -> ManualExport:
        return _export(await api.get(f"/v1/exports/{export_id}"))

    return await watch_by(look, session.answer, export_id)


def _export(shown: dict[str, Any]) -> ManualExport:
    """Return an export as the API shows it as the value that the tables are made of."""
    file = shown["file"]
    wanted = WantedExport(
        parse_instant(shown["from"]),
        parse_instant(shown["until"]),
        shown["resolution_minutes"],
        ExportFormat(shown["format"]),
        _ids(shown["site_ids"]),
        _ids(shown["meter_ids"]),
        _maybe(shown["as_of"]),
    )
    return ManualExport(
        export_id=shown["export_id"],
        requested_by=shown["requested_by"],
        requested_at=parse_instant(shown["requested_at"]),
        wanted=wanted,
        state=shown["state"],
        is_cancelling=shown["is_cancelling"],
        position=parse_instant(shown["position"]),
        row_count=shown["rows"],
        byte_count=None if file is None else file["bytes"],
        sha256=None if file is None else bytes.fromhex(file["sha256"]),
        started_at=_maybe(shown["started_at"]),
        finished_at=_maybe(shown["finished_at"]),
        expires_at=None if file is None else _maybe(file["kept_until"]),
        problem_code=shown["problem_code"],
        problem=shown["problem"],
        object_name=None,
    )


def _ids(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)


def _maybe(text: str | None) -> datetime | None:
    return None if text is None else parse_instant(text)
