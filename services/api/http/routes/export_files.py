"""The file of a manual export, for whoever has a link to it: no token, whole or a range of it."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import structlog

from services.api.export_downloads import Download, NotDownloadableError, download_of, look, open_link, stream
from services.api.http.call import Call
from services.api.http.decoding import Id
from services.api.http.endpoint import Answer, Endpoint, Streamed
from services.api.http.problems import Problem
from services.api.manual_exports import find_export
from services.platform.errors import OperatorNeeded, Unavailable, UserError
from services.platform.postgres import transaction
from services.platform.signed_links import LinkError, LinkExpiredError

RETRY_SECONDS = 5
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
log = structlog.get_logger()


class FileQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a link holds; GET /v1/exports/{export_id} makes links."""

    organization_id: Id
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


async def give_file(call: Call) -> Answer:
    """Hand a file out, from the store as fast as it is taken; nobody's connection to the database is held."""
    download = await _opened(call)
    start, end = _range(call, download)
    with _problems():
        objects = await asyncio.to_thread(call.means.export_store)
    pieces = stream(objects, download, start, end)
    headers = _headers(download)
    is_whole = (start, end) == (0, download.byte_count)
    if not is_whole:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{download.byte_count}"
    # The first piece before the headers, so that a file that is gone, or a store that is away, is still a problem.
    body = Streamed(_rest(await _first(pieces), pieces, download), end - start)
    return Answer(body, 200 if is_whole else 206, headers, download.media_type)


async def describe_file(call: Call) -> Answer:
    """Say what GET would answer without a range, if it can: whether the file is there is asked of the store."""
    download = await _opened(call)
    with _problems():
        objects = await asyncio.to_thread(call.means.export_store)
        await asyncio.to_thread(look, objects, download)
    length = {"Content-Length": str(download.byte_count), "Content-Type": download.media_type}
    return Answer(None, 200, _headers(download) | length)


def _headers(download: Download) -> dict[str, str]:
    return {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{download.file_name}"',
        "ETag": _etag(download),
        "Repr-Digest": f"sha-256=:{base64.b64encode(download.sha256).decode()}:",
    }


async def _opened(call: Call) -> Download:
    query, export_id = call.query(FileQuery), call.id("export_id", "export")
    means = call.means
    try:
        return await open_link(means.pool, means.vault, query.organization_id, export_id, query.token, call.now)
    except LinkExpiredError as error:
        await _refuse_if_gone(call, query.organization_id, export_id)
        raise Problem("link_expired", f"{error} (GET /v1/exports/{export_id})") from None
    except LinkError as error:
        raise Problem(
            "bad_link",
            f"{error} (GET /v1/exports/{export_id}), and take it as it is, to its last character",
        ) from None
    except NotDownloadableError as error:
        raise Problem("gone", str(error)) from None


async def _refuse_if_gone(call: Call, organization_id: int, export_id: int) -> None:
    """Raise Problem where a new link would not help; the old one was signed by us, so it may be told."""
    async with transaction(call.means.pool) as connection:
        export = await find_export(connection, organization_id, export_id)
    try:
        download_of(export, call.now)
    except NotDownloadableError as error:
        raise Problem("gone", str(error)) from None


async def _first(pieces: AsyncIterator[bytes]) -> bytes:
    with _problems():
        return await anext(pieces, b"")


@contextmanager
def _problems() -> Iterator[None]:
    """Turn what the store says into what a caller is told."""
    try:
        yield
    except NotDownloadableError as error:
        raise Problem("gone", str(error)) from None
    except Unavailable as error:
        log.warning("export_store_away", error=str(error))
        raise Problem(
            "unavailable",
            f"the store of exported files does not answer; try again in {RETRY_SECONDS} s",
            headers={"Retry-After": str(RETRY_SECONDS)},
        ) from None
    except UserError as error:
        raise OperatorNeeded(str(error)) from error


async def _rest(first: bytes, pieces: AsyncIterator[bytes], download: Download) -> AsyncIterator[bytes]:
    """Yield a file whose headers are sent: what goes wrong from now on ends the connection before its last byte."""
    try:
        yield first
        async for piece in pieces:
            yield piece
    except (Unavailable, UserError) as error:
        log.warning("export_download_broken", file=download.file_name, error=str(error))
        raise ConnectionResetError("the file could not be read to its end") from error


def _range(call: Call, download: Download) -> tuple[int, int]:
    """Return which bytes are asked for, [start, end). A Range that is not understood is as if it were not there."""
    size = download.byte_count
    asked = _RANGE.fullmatch(call.headers.get("Range", "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-" or call.headers.get("If-Range", _etag(download)) != _etag(download):
        return 0, size
    if not asked[1]:
        start, end = max(0, size - int(asked[2])), size
    else:
        start, end = int(asked[1]), size if not asked[2] else min(size, int(asked[2]) + 1)
        if asked[2] and int(asked[2]) < start:
            return 0, size
    if start >= size:
        raise Problem(
            "range_not_satisfiable",
            f"the file has {size} bytes, and the range begins behind them",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


def _etag(download: Download) -> str:
    return f'"{download.sha256.hex()}"'


_CODES = ("bad_link", "link_expired", "gone")
ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/exports/{export_id}/file", "give_export_file", "A finished file, by a link that needs no token"),
        *(give_file, None, bytes),
        query=FileQuery,
        holds_connection=False,
        is_ranged=True,
        media_types=("text/csv", "application/x-ndjson", "application/vnd.apache.parquet"),
        codes=_CODES,
    ),
    Endpoint(
        *("HEAD", "/v1/exports/{export_id}/file", "describe_export_file", "Its length and ETag, by the same link"),
        *(describe_file, None, None),
        query=FileQuery,
        holds_connection=False,
        codes=_CODES,
    ),
)
