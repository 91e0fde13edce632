"""What a command says of manual exports: tables and facts for people, JSON for programs."""

from typing import Any

from services.api.manual_exports import ManualExport
from services.cli.export_progress import where
from services.cli.session import Session
from services.cli.show import Column, utc
from services.platform.errors import MeterpostError, UserError

STATES = ("waiting", "running", "done", "failed", "cancelled", "expired")
EXPORTS = (
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


class ExportUnsuccessfulError(MeterpostError):
    """There is no file at the end."""


def known_state(state: str | None) -> str | None:
    """Return the state. Raises UserError where no export is ever in it."""
    if state is not None and state not in STATES:
        raise UserError(f"--state is {state!r}; there are: {', '.join(STATES)}")
    return state


def refuse_without_file(export: ManualExport) -> None:
    """Raise ExportUnsuccessfulError where an export ended without a file."""
    if export.state != "done":
        why = f": {export.problem}" if export.problem else ""
        raise ExportUnsuccessfulError(f"export {export.export_id} is {export.state}{why}")


def tell(session: Session, export: ManualExport, link: dict[str, Any] | None = None) -> None:
    """Show an export, and the link that was signed for it."""
    if session.answer.as_json:
        session.answer.json(export_json(export) if link is None else {**export_json(export), "link": link})
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
        facts += [("Link", link.get("url") or f"<the HTTP API>{link['path']}"), ("Good until", link["expires_at"])]
    session.answer.facts(facts)


def export_row(export: ManualExport) -> tuple[object, ...]:
    """Return an export as a row of the table."""
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


def export_json(export: ManualExport) -> dict[str, object]:
    """Return an export for programs."""
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
