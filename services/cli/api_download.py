"""A file of the HTTP API, fetched by its link: with progress, going on where it broke, checked at the end."""

import asyncio
import hashlib
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from services.cli.api_session import Api, refused
from services.cli.export_files import Partial, is_wrong, partial_of
from services.cli.session import Session
from services.platform.errors import Unavailable

TRIES = 5
"""In a row that bring no byte."""
_WAIT_SECONDS = 0.5
_CONNECT_SECONDS = 30
_SILENT_SECONDS = 60
_PIECE = 1 << 18


async def fetch(session: Session, api: Api, export_id: int, shown: dict[str, Any], target: Path) -> None:
    """Write the file that an export is shown with. Raises Unavailable where it broke; what came is kept then."""
    import rich.progress  # noqa: PLC0415 - few commands fetch a file

    from services.cli.terminal import console  # noqa: PLC0415 - as above

    file = shown["file"]
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
    task = bar.add_task(f"export {export_id}", total=file["bytes"])
    partial = await asyncio.to_thread(partial_of, target, file["sha256"], file["bytes"])
    if partial.byte_count:
        session.answer.note(f"going on after {partial.byte_count:,} of {file['bytes']:,} bytes")
    is_live = sys.stderr.isatty() and not session.answer.as_json
    failed = 0
    with bar if is_live else nullcontext():
        while partial.byte_count < file["bytes"]:
            before = partial.byte_count
            try:
                partial = await _go_on(
                    api, _path(shown), file["sha256"], partial, lambda n: bar.update(task, completed=n)
                )
            except Unavailable as error:
                # What came before it broke is in the file.
                partial = await asyncio.to_thread(partial_of, target, file["sha256"], file["bytes"])
                failed = 1 if partial.byte_count > before else failed + 1
                if failed >= TRIES:
                    raise Unavailable(
                        f"{error}; {partial.byte_count:,} of {file['bytes']:,} bytes are there, and the same command "
                        "goes on with the rest"
                    ) from None
                await asyncio.sleep(_WAIT_SECONDS * failed)
                shown = await _fresh(api, export_id, shown)
    _finish(partial, file["sha256"], target)


async def _fresh(api: Api, export_id: int, shown: dict[str, Any]) -> dict[str, Any]:
    """Return the export with a fresh link, or as it was where the API does not answer either."""
    try:
        found: dict[str, Any] = await api.get(f"/v1/exports/{export_id}")
    except Unavailable:
        return shown
    return found if found["download"] else shown


async def _go_on(api: Api, path: str, sha256: str, partial: Partial, told: Any) -> Partial:
    """Fetch what is missing. Raises Unavailable, UserError."""
    import aiohttp  # noqa: PLC0415 - most commands need no HTTP, and it costs a fifth of a second

    headers = {"Range": f"bytes={partial.byte_count}-", "If-Range": f'"{sha256}"'} if partial.byte_count else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
    count, digest = partial.byte_count, partial.digest
    try:
        async with api.http.get(api.place.url + path, headers=headers, timeout=timeout) as response:
            if response.status >= 400:
                raise refused(response.status, await response.read(), api.place)
            if response.status != 206:
                count, digest = 0, hashlib.sha256()
            with partial.file.open("ab" if response.status == 206 else "wb", buffering=0) as file:
                async for piece in response.content.iter_chunked(_PIECE):
                    file.write(piece)
                    digest.update(piece)
                    count += len(piece)
                    told(count)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise Unavailable(f"the download broke: {str(error) or 'nothing came for a while'}") from None
    if count == partial.byte_count:
        raise Unavailable("the download broke: nothing came")
    return Partial(partial.file, count, digest)


def _finish(partial: Partial, sha256: str, target: Path) -> None:
    if partial.digest.hexdigest() != sha256:
        partial.file.unlink(missing_ok=True)
        raise is_wrong("the HTTP API", partial.digest.hexdigest(), sha256)
    if not partial.byte_count:
        partial.file.touch()
    partial.file.replace(target)


def _path(shown: dict[str, Any]) -> str:
    """Return the link as it is reached from here: the address that the API has for others need not be ours."""
    url = str(shown["download"]["url"])
    return url[url.index("/v1/exports/") :]
