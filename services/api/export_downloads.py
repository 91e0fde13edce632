"""Downloads of finished manual exports, by links that need no login and open one file for a while."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import NamedTuple

from services.api.manual_exports import ManualExport, find_export
from services.platform.errors import UserError
from services.platform.objects import ObjectMissingError, ObjectStore
from services.platform.postgres import Pool, transaction
from services.platform.secrets import Vault
from services.platform.signed_links import LinkSigner

PURPOSE = "manual-export"
DEFAULT_LIFETIME = timedelta(minutes=15)
LONGEST_LIFETIME = timedelta(hours=48)


class NotDownloadableError(UserError):
    """There is no file: not yet, not any more, or never."""


class Download(NamedTuple):
    """A file that may be handed out."""

    file_name: str
    byte_count: int
    sha256: bytes
    media_type: str
    object_name: str


class Link(NamedTuple):
    """What opens a file: the token goes into the address, beside organization and export."""

    organization_id: int
    export_id: int
    token: str
    expires_at: datetime


_MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}


def sign_link(
    vault: Vault, organization_id: int, export: ManualExport, now: datetime, lifetime: timedelta = DEFAULT_LIFETIME
) -> Link:
    """Return a link to a finished export's file, good for `lifetime` and never longer than the file is kept.

    Raises NotDownloadableError where there is no file, UserError without a key or for a lifetime that is too long.
    """
    if not timedelta(0) < lifetime <= LONGEST_LIFETIME:
        raise UserError(f"a link is good for at most {LONGEST_LIFETIME // timedelta(hours=1)} hours: ask for less")
    _refuse_without_file(export, now)
    assert export.expires_at is not None  # noqa: S101 - it has a file
    expires_at = min(now + lifetime, export.expires_at).replace(microsecond=0)
    token = _signer(vault).sign((organization_id, export.export_id), expires_at)
    return Link(organization_id, export.export_id, token, expires_at)


async def open_link(
    pool: Pool, vault: Vault, organization_id: int, export_id: int, token: str, now: datetime
) -> Download:
    """Return what a link opens. Raises LinkError (forged, for something else, or over), NotDownloadableError.

    Nothing is looked up before the token has proved right, so a forged one learns nothing.
    """
    _signer(vault).check(token, (organization_id, export_id), now)
    async with transaction(pool) as connection:
        export = await find_export(connection, organization_id, export_id)
    return download_of(export, now)


def download_of(export: ManualExport, now: datetime) -> Download:
    """Return a finished export's file, for whoever may see it anyway. Raises NotDownloadableError."""
    _refuse_without_file(export, now)
    assert export.byte_count is not None  # noqa: S101 - it has a file
    assert export.sha256 is not None  # noqa: S101 - as above
    assert export.object_name is not None  # noqa: S101 - as above
    return Download(
        export.file_name,
        export.byte_count,
        export.sha256,
        _MEDIA_TYPES[export.wanted.format.value],
        export.object_name,
    )


async def stream(
    objects: ObjectStore, download: Download, start: int = 0, end: int | None = None
) -> AsyncIterator[bytes]:
    """Yield the bytes [start, end) of a file, a megabyte at a time; nothing is read ahead of whoever takes them.

    Raises NotDownloadableError where the file is gone, Unavailable while the store is away.
    """
    pieces = objects.read(download.object_name, start, download.byte_count if end is None else end)
    while True:
        try:
            piece = await asyncio.to_thread(next, pieces, None)
        except ObjectMissingError:
            raise NotDownloadableError("the file was removed: export anew") from None
        if piece is None:
            return
        yield piece


def look(objects: ObjectStore, download: Download) -> None:
    """Raise NotDownloadableError unless a file is there, Unavailable while the store is away. Blocks."""
    try:
        size = objects.size(download.object_name)
    except ObjectMissingError:
        raise NotDownloadableError("the file was removed: export anew") from None
    if size != download.byte_count:
        raise NotDownloadableError("the file was changed in its store: export anew")


def _signer(vault: Vault) -> LinkSigner:
    return vault.link_signer(PURPOSE)


def _refuse_without_file(export: ManualExport, now: datetime) -> None:
    if export.state == "done" and export.expires_at is not None and now < export.expires_at:
        return
    reasons = {
        "waiting": "waits for its turn: come back when it is done",
        "running": f"is being made ({export.share:.0%}): come back when it is done",
        "failed": f"failed: {export.problem}",
        "cancelled": "was cancelled: export anew",
    }
    why = reasons.get(export.state, "is no longer kept: export anew")
    raise NotDownloadableError(f"export {export.export_id} {why}")
