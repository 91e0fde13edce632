"""What the run of a slot would hold: on real measurements, with nothing planned and nothing sent."""

from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated

import msgspec

from services.api.catalog_queries import CatalogOf, catalog_page, newest_revision, platform_clock
from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.problems import Problem, invalid
from services.api.http.routes import jobs
from services.api.job_settings import JobSettings
from services.api.measurement_queries import MeasurementRow, Wanted, closed_until, measurements, meters_of_sites
from services.core.blocks import Block
from services.core.catalog_format import CatalogCutter, CutCatalog, catalog_format
from services.core.catalog_records import BEGINNING, CATALOG
from services.core.conversion import Utility
from services.core.file_transfer import file_format
from services.core.parts import HTTPS_JSON, cut_parts
from services.core.records import MeasurementRow as Record
from services.core.row_blocks import add_rows, render_rows
from services.core.schedule import Slot, slot_at

BATCH = 5_000
FIRST_ROWS = 10
MOST_ROWS = 1_000_000


class DryRunQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which slot."""

    slot: Annotated[Instant, msgspec.Meta(description="Any instant inside the slot.")]


class PartEstimate(msgspec.Struct, frozen=True):
    """A part as it would be."""

    rows: int
    bytes: int
    sha256: str


class DryRun(msgspec.Struct, frozen=True):
    """What the run would hold, with the names known now.

    `is_closed` false: some windows of the slot are still open; of a catalog, the slot is not over yet.
    """

    slot_start: Instant
    slot_end: Instant
    is_closed: bool
    rows: int
    bytes: int
    parts: list[PartEstimate]
    first_rows: list[str]
    """As they would be sent, without what stands between them."""


async def dry_run(call: Call) -> Answer:
    """Render the slot without keeping it."""
    job, slot_time = await jobs.find(call), call.query(DryRunQuery).slot
    if not 1971 <= slot_time.year <= 9000:
        raise invalid("slot", "the slot lies in no time that meters know")
    settings = job.settings
    slot = slot_at(slot_time, settings.frequency_minutes)
    if settings.data == CATALOG:
        return Answer(await _catalog(call, settings, slot))
    form = HTTPS_JSON if settings.transport == "https" else file_format(settings.transport_settings)
    meters = None
    if settings.site_ids is not None:
        meters = await meters_of_sites(call.connection, call.organization_id, settings.site_ids)
    step = timedelta(minutes=settings.resolution_minutes)
    rows = 0
    parts: list[PartEstimate] = []
    block = Block(form.layout, form.joint)
    first: list[bytes] = []
    after: tuple[datetime, int] | None = None
    while True:
        wanted = Wanted(
            *(call.organization_id, slot.start, slot.end, step, meters, settings.site_ids, None, after, BATCH)
        )
        found = await measurements(call.connection, settings.resolution_minutes, wanted)
        records = _records(found, settings.resolution_minutes)
        rows += len(records)
        if rows > MOST_ROWS:
            raise Problem("conflict", f"the slot has more than {MOST_ROWS:,} rows: too many for a dry run")
        first += render_rows(form.layout, records[: FIRST_ROWS - len(first)])
        add_rows(block, form.layout, records)
        is_end = len(found) < BATCH
        done = 0
        for cut in cut_parts(form, block, is_end=is_end):
            parts.append(PartEstimate(cut.row_count, len(cut.body), sha256(cut.body).hexdigest()))
            done += cut.row_count
        if is_end:
            break
        # What did not fill a part begins the next one.
        block.pieces = block.pieces[done * block.stride :]
        after = (found[-1].window_start, found[-1].meter_id)
    until = await closed_until(call.connection, settings.resolution_minutes)
    size = sum(part.bytes for part in parts)
    is_closed = until is not None and slot.end <= until
    return Answer(DryRun(slot.start, slot.end, is_closed, rows, size, parts, [one.decode() for one in first]))


async def _catalog(call: Call, settings: JobSettings, slot: Slot) -> DryRun:
    """Render the catalog of the slot's end as it is known now."""
    form = catalog_format(settings.transport, settings.transport_settings, slot.end)
    cutter = CatalogCutter(form)
    parts: list[PartEstimate] = []
    first_rows: list[str] = []
    of = CatalogOf(call.organization_id, slot.end, await newest_revision(call.connection), settings.site_ids)
    rows, place = 0, BEGINNING
    while True:
        page = await catalog_page(call.connection, of, place, BATCH)
        rows += len(page)
        if rows > MOST_ROWS:
            raise Problem("conflict", f"the catalog has more than {MOST_ROWS:,} records: too many for a dry run")
        first_rows += [form.row(one).decode().rstrip("\r\n") for one in page[: FIRST_ROWS - len(first_rows)]]
        parts += map(_estimate, cutter.add(page))
        if len(page) < BATCH:
            break
        place = page[-1].key.following
    parts += map(_estimate, cutter.finish())
    clock = await platform_clock(call.connection)
    is_over = clock is not None and slot.end <= clock
    return DryRun(slot.start, slot.end, is_over, rows, sum(part.bytes for part in parts), parts, first_rows)


def _estimate(cut: CutCatalog) -> PartEstimate:
    return PartEstimate(cut.row_count, len(cut.body), sha256(cut.body).hexdigest())


def _records(found: list[MeasurementRow], resolution: int) -> list[Record]:
    return [
        Record(
            *(one.meter_id, one.meter_type, Utility(one.utility), one.meter_name, one.meter_unit, one.window_start),
            *(resolution, one.site_id, one.site_name, one.energy_wh, one.volume),
        )
        for one in found
    ]


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/jobs/{job_id}/dry-run", "dry_run_job", "What the run of a slot would hold; nothing is sent"),
        *(dry_run, "viewer", DryRun),
        query=DryRunQuery,
        codes=("conflict",),
    ),
)
