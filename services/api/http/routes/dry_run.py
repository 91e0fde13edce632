"""What the run of a slot would hold: on real measurements, with nothing planned and nothing sent."""

from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.problems import Problem, invalid
from services.api.http.routes import jobs
from services.api.measurement_queries import MeasurementRow, Wanted, closed_until, measurements, meters_of_sites
from services.core.conversion import Utility
from services.core.file_transfer import file_format
from services.core.parts import HTTPS_JSON, CutPart, PartCutter, PartFormat
from services.core.records import MeasurementRow as Record
from services.core.schedule import slot_at

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
    """What the run would hold, with the names known now. `is_closed` false: some windows of the slot are still open."""

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
    form = HTTPS_JSON if settings.transport == "https" else file_format(settings.transport_settings)
    meters = None
    if settings.site_ids is not None:
        meters = await meters_of_sites(call.connection, call.organization_id, settings.site_ids)
    step = timedelta(minutes=settings.resolution_minutes)
    cutter, rows = PartCutter[Record](form), 0
    parts: list[CutPart[Record]] = []
    first: list[bytes] = []
    after: tuple[datetime, int] | None = None
    while True:
        wanted = Wanted(
            *(call.organization_id, slot.start, slot.end, step, meters, settings.site_ids, None, after, BATCH)
        )
        found = await measurements(call.connection, settings.resolution_minutes, wanted)
        records, rendered = _render(form, found, settings.resolution_minutes)
        rows += len(rendered)
        if rows > MOST_ROWS:
            raise Problem("conflict", f"the slot has more than {MOST_ROWS:,} rows: too many for a dry run")
        first += rendered[: FIRST_ROWS - len(first)]
        parts += cutter.feed(records, rendered)
        if len(found) < BATCH:
            break
        after = (found[-1].window_start, found[-1].meter_id)
    parts += cutter.finish()
    until = await closed_until(call.connection, settings.resolution_minutes)
    shown = [PartEstimate(one.row_count, one.byte_count, one.sha256.hex()) for one in parts]
    size = sum(one.byte_count for one in parts)
    is_closed = until is not None and slot.end <= until
    return Answer(DryRun(slot.start, slot.end, is_closed, rows, size, shown, [one.decode() for one in first]))


def _render(form: PartFormat, found: list[MeasurementRow], resolution: int) -> tuple[list[Record], list[bytes]]:
    records = [
        Record(
            *(one.meter_id, one.meter_type, Utility(one.utility), one.meter_name, one.meter_unit, one.window_start),
            *(resolution, one.site_id, one.site_name, one.energy_wh, one.volume),
        )
        for one in found
    ]
    return records, form.render(records)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/jobs/{job_id}/dry-run", "dry_run_job", "What the run of a slot would hold; nothing is sent"),
        *(dry_run, "viewer", DryRun),
        query=DryRunQuery,
        codes=("conflict",),
    ),
)
