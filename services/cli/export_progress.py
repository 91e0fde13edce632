"""How far an export has come: a bar on a terminal, a line where something changed elsewhere, nothing beside JSON."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

from services.api.manual_exports import ManualExport, find_export
from services.cli.show import Answer, utc
from services.platform.postgres import Pool, transaction

LOOK_SECONDS = 0.5
_LINE_EVERY_SECONDS = 10.0


async def watch(pool: Pool, answer: Answer, organization_id: int, export_id: int) -> ManualExport:
    """Wait until an export is over and return it. Ctrl-C ends the watching, not the export."""

    async def look() -> ManualExport:
        async with transaction(pool) as connection:
            return await find_export(connection, organization_id, export_id)

    return await watch_by(look, answer, export_id)


async def watch_by(look: Callable[[], Awaitable[ManualExport]], answer: Answer, export_id: int) -> ManualExport:
    """Do so by whatever tells how an export stands."""
    import rich.progress  # noqa: PLC0415 - few commands watch

    from services.cli.terminal import console  # noqa: PLC0415 - as above

    is_live = sys.stderr.isatty() and not answer.as_json
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[rows]}"),
        rich.progress.TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    )
    task = bar.add_task(f"export {export_id}", total=1.0, rows="")
    told, told_at = "", 0.0
    with bar if is_live else nullcontext():
        while True:
            export = await look()
            if export.is_over:
                return export
            if is_live:
                bar.update(task, completed=export.share, rows=where(export))
            elif not answer.as_json and (export.state != told or time.monotonic() - told_at > _LINE_EVERY_SECONDS):
                told, told_at = export.state, time.monotonic()
                answer.note(f"export {export_id}: {where(export)}")
            await asyncio.sleep(LOOK_SECONDS)


def where(export: ManualExport) -> str:
    """Return in a few words where an unfinished export stands."""
    if export.problem is not None:
        return f"{export.state}; {export.problem}"
    if export.state == "waiting":
        return "waits for its turn"
    if export.is_cancelling:
        return "is being cancelled"
    if export.position >= export.wanted.end:
        return f"{export.row_count:,} rows; the file is being put together"
    return f"{export.row_count:,} rows, up to {utc(export.position)}"
