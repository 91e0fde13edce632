"""Manual exports inside a test: a catalog with awkward names, the model of what a file must hold, and the worker."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from services.api.manual_exports import ManualExport, create_export, find_export
from services.core.csv_records import csv_format
from services.core.manual_export import ExportFormat, WantedExport, WhenFull
from services.core.readings import ReadingVersion
from services.core.records import MeasurementRow
from services.core.row_blocks import render_rows
from services.exports.chunks import ChunkMaker
from services.exports.store import ExportStore
from services.exports.sweeping import Sweeper
from services.exports.worker import Limits, Worker
from services.platform.clock import Clock, SystemClock
from services.platform.objects import ObjectStore, open_store
from services.platform.postgres import Pool, transaction
from tests.support.closing import UTILITIES, expected_rows, seed_meters
from tests.support.polling import eventually_async
from tests.support.row_oracle import json_line

ORGANIZATION_ID = 1
USER = "someone@test"
LONG_AFTER = timedelta(days=3_650)
"""A grace under which closing takes whatever ever arrives."""
METER_NAMES = {1: 'Main "hall", east', 2: "Heat\\exchanger", 3: "Gas\nline two", 4: "Wasser überall", 5: "=cmd()"}
SITE_NAMES = {1: "North; depot", 2: 'South, "old"'}
MODULI = dict.fromkeys(UTILITIES, 100_000)


class TurnedClock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        """Return the machine's time and as much more as the test says."""
        return SystemClock().now() + self.ahead


@dataclass
class Exporting:
    """A worker on a store of the test's own."""

    pool: Pool
    folder: Path
    clock: Clock

    def __post_init__(self) -> None:
        """Build the worker as the service does."""
        self.objects: ObjectStore = open_store(self.folder.as_uri())
        self.stopping = asyncio.Event()
        self.store = ExportStore(self.pool, "test", timedelta(seconds=30))
        self.maker = ChunkMaker(self.pool, self.store, self.objects, self.clock)
        self.worker = self.worker_with()
        self.sweeper = Sweeper(self.store, self.objects, self.clock)

    def worker_with(self, slice_seconds: float = 60, tries: int = 3, step_seconds: float = 1) -> Worker:
        """Return a worker with other limits."""
        limits = Limits(slice_seconds, timedelta(seconds=30), step_seconds, 0, tries, timedelta(hours=48))
        return Worker(self.store, self.maker, self.objects, limits=limits, clock=self.clock, stopping=self.stopping)

    async def ask(
        self, wanted: WantedExport, *, user: str = USER, when_full: WhenFull = WhenFull.REFUSE
    ) -> ManualExport:
        """Ask for an export."""
        async with transaction(self.pool) as connection:
            export_id = await create_export(connection, ORGANIZATION_ID, user, wanted, when_full)
        return await self.find(export_id)

    async def find(self, export_id: int) -> ManualExport:
        """Return an export as it stands."""
        async with transaction(self.pool) as connection:
            return await find_export(connection, ORGANIZATION_ID, export_id)

    async def work(self) -> int:
        """Work for as long as there is something to do; return the number of claims."""
        claims = 0
        while (claim := await self.store.claim(self.clock.now())) is not None:
            claims += 1
            await self.worker.work(claim)
        return claims

    async def file(self, wanted: WantedExport, chunk_minutes: int | None = None) -> bytes:
        """Export, and return the file's bytes; its size and hash are those that are recorded."""
        export = await self.ask(wanted)
        if chunk_minutes is not None:
            await self.begin_with(export, chunk_minutes)
        await self.work()
        return await self.content(export.export_id)

    async def begin_with(self, export: ManualExport, chunk_minutes: int) -> None:
        """Begin an export with chunks of a size of the test's."""
        claim = await self.store.claim(self.clock.now())
        assert claim is not None
        assert claim.key.export_id == export.export_id
        async with transaction(self.pool) as connection:
            await connection.execute(
                "UPDATE manual_export_progress SET chunk_minutes = $2 WHERE export_id = $1",
                export.export_id,
                chunk_minutes,
            )
        await self.store.release(claim, self.clock.now())

    async def content(self, export_id: int) -> bytes:
        """Return the bytes of a finished file."""
        export = await self.find(export_id)
        assert export.state == "done", (export.state, export.problem)
        content = (await self.path(export_id)).read_bytes()
        assert export.byte_count == len(content)
        return content

    async def path(self, export_id: int) -> Path:
        """Return where a finished file lies."""
        export = await self.find(export_id)
        assert export.object_name is not None
        assert export.object_name.endswith(f"/{export.file_name}")
        return self.folder / export.object_name

    async def until(self, export_id: int, state: str) -> ManualExport:
        """Wait until an export is in a state."""

        async def reached() -> ManualExport | None:
            export = await self.find(export_id)
            return export if export.state == state else None

        found = await eventually_async(reached, 30, because=f"export {export_id} is {state}")
        assert found is not None
        return found


async def seed_catalog(url: str) -> None:
    """Register one meter of each utility at one site, with names that need care; the sites have names, too."""
    await seed_meters(url, UTILITIES, moduli=MODULI)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("INSERT INTO site (site_id, organization_id, revision) VALUES (2, 1, 1)")
        for site_id, name in SITE_NAMES.items():
            await connection.execute(
                "INSERT INTO site_description VALUES ($1, '-infinity', 1, $2, 'UTC')", site_id, name
            )
        for meter_id, name in METER_NAMES.items():
            await connection.execute("UPDATE meter_configuration SET name = $2 WHERE meter_id = $1", meter_id, name)
    finally:
        await connection.close()


def expected_export(
    versions: Iterable[ReadingVersion],
    wanted: WantedExport,
    places: Sequence[tuple[datetime, int, str, int]] = (),
) -> list[MeasurementRow]:
    """Return the rows by the words of the contract; `places`: from when on a meter has another name and site."""
    known = [one for one in versions if wanted.known_at is None or one.arrived_at <= wanted.known_at]
    rows = []
    for row in expected_rows(known, wanted.resolution_minutes, LONG_AFTER, UTILITIES, moduli=MODULI):
        utility = UTILITIES[row.meter_id].utility
        name, site_id = METER_NAMES[row.meter_id], 1
        for since, meter_id, new_name, new_site in places:
            if meter_id == row.meter_id and row.window_start >= since:
                name, site_id = new_name, new_site
        is_chosen = (wanted.meter_ids is None or row.meter_id in wanted.meter_ids) and (
            wanted.site_ids is None or site_id in wanted.site_ids
        )
        if is_chosen and wanted.start <= row.window_start < wanted.end:
            rows.append(
                MeasurementRow(
                    row.meter_id,
                    utility.value,
                    utility,
                    name,
                    utility.units[0],
                    row.window_start,
                    row.resolution_minutes,
                    site_id,
                    SITE_NAMES[site_id],
                    row.energy_wh,
                    row.volume,
                )
            )
    return rows


def rendered(rows: Sequence[MeasurementRow], export_format: ExportFormat) -> bytes:
    """Return the file that these rows make."""
    if export_format is ExportFormat.JSON_LINES:
        return b"".join(line + b"\n" for line in map(json_line, rows))
    part_format = csv_format("\n", defuse=True)
    lines = render_rows(part_format.layout, rows)
    return part_format.assemble(lines) if lines else part_format.head


def wanted_export(start: datetime, end: datetime, resolution: int, **more: Any) -> WantedExport:
    """Return a request."""
    return WantedExport(start.astimezone(UTC), end.astimezone(UTC), resolution, **more)
