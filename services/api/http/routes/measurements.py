"""Measurements (closed windows) and readings (what meters reported), by meter, site and time."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec

from services.api import measurement_queries
from services.api.http.call import Call, encode
from services.api.http.decoding import Id, Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import Cursor, link, page, read_cursor, write_cursor
from services.api.http.problems import Problem, invalid, not_found
from services.api.measurement_queries import MeasurementRow, ReadingRow, Wanted
from services.core.conversion import Utility
from services.core.csv_records import csv_format
from services.core.records import MeasurementRow as Record
from services.core.row_blocks import render_rows
from services.core.times import ceil_to, iso_seconds

CSV = "text/csv; charset=utf-8; header=present"
DAYS = {1: 31, 5: 92, 15: 366, 60: 366}
READING_DAYS = 31
_MINUTE = timedelta(minutes=1)
_MEASUREMENTS = b'{"measurements":['
_NO_MEASUREMENTS = _MEASUREMENTS + b"]"
PageSize = Annotated[int, msgspec.Meta(ge=1, le=10_000, description="At most so many on a page.")]
MeterIds = Annotated[list[Id], msgspec.Meta(max_length=1_000)]
SiteIds = Annotated[list[Id], msgspec.Meta(max_length=250)]
Format = Literal["json", "csv"]


class MeasurementsQuery(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}
):
    """Which windows: those that start in [from, until)."""

    from_: Instant
    until: Instant
    resolution: Annotated[Literal[1, 5, 15, 60], msgspec.Meta(description="Minutes.")]
    meter_id: MeterIds = []
    site_id: SiteIds = []
    as_of: Annotated[
        Instant | None,
        msgspec.Meta(description="Only windows whose cut-off had passed by then, with the names known then."),
    ] = None
    format: Format = "json"
    limit: PageSize = 1_000
    cursor: Cursor | None = None


class ReadingsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}):
    """Which readings: those whose interval starts in [from, until), of meters or sites that are named."""

    from_: Instant
    until: Instant
    meter_id: MeterIds = []
    site_id: SiteIds = []
    as_of: Annotated[Instant, msgspec.Meta(description="As known when this instant had arrived.")] | None = None
    format: Format = "json"
    limit: PageSize = 1_000
    cursor: Cursor | None = None


class MeasurementShown(msgspec.Struct, frozen=True, gc=False):
    """A closed window of a meter; exact, not rounded. null: the utility has no such value.

    Power is in W, flow in the meter's unit per hour.
    """

    window_start: Instant
    resolution_minutes: int
    meter_id: int
    meter_type: str
    meter_name: str
    meter_unit: str
    site_id: int
    site_name: str
    energy_wh: str | None
    power_w: str | None
    volume: str | None
    flow_per_hour: str | None
    pulses: int
    intervals_present: int
    intervals_expected: int
    flags: list[str]


class Measurements(msgspec.Struct, frozen=True):
    """A page of windows by (start, meter). Windows from `closed_until` on are still open."""

    measurements: list[MeasurementShown]
    closed_until: Instant | None
    next_cursor: str | None


class ReadingShown(msgspec.Struct, frozen=True, gc=False):
    """The newest version of a reading: pulses of the interval, or the register at its end."""

    measurement_time: Instant
    meter_id: int
    interval_minutes: int
    pulses: int | None
    register: int | None
    revision: int
    arrived_at: Instant


class Readings(msgspec.Struct, frozen=True):
    """A page of readings by (time, meter)."""

    readings: list[ReadingShown]
    next_cursor: str | None


async def list_measurements(call: Call) -> Answer:
    """List closed windows."""
    query = call.query(MeasurementsQuery)
    _check_range(query.from_, query.until, DAYS[query.resolution], f"at {query.resolution} minutes")
    meters, sites = await _whose(call, query.meter_id, query.site_id)
    wanted = _wanted(call, query, timedelta(minutes=query.resolution), meters, sites)
    if query.format == "csv":
        rows = await measurement_queries.measurements(call.connection, query.resolution, wanted)
        found, cursor = page(query, rows, lambda one: [one.window_start, one.meter_id])
        return _csv(call, _render(found, query.resolution), cursor)
    objects, last = await measurement_queries.measurements_json(call.connection, query.resolution, wanted)
    cursor = None if last is None else write_cursor(query, last)
    until = await measurement_queries.closed_until(call.connection, query.resolution)
    # The windows come as they are to be sent, and stand first.
    rest = encode(Measurements([], until, cursor)).removeprefix(_NO_MEASUREMENTS)
    return Answer(b"".join([_MEASUREMENTS, objects.encode(), b"]", rest]), headers=link(call, cursor))


async def list_readings(call: Call) -> Answer:
    """List readings."""
    query = call.query(ReadingsQuery)
    _check_range(query.from_, query.until, READING_DAYS, "of readings")
    if not query.meter_id and not query.site_id:
        raise Problem("missing_field", "name meters by meter_id, or sites by site_id", field="meter_id")
    meters, sites = await _whose(call, query.meter_id, query.site_id)
    rows = await measurement_queries.readings(call.connection, _wanted(call, query, _MINUTE, meters, sites))
    found, cursor = page(query, rows, lambda one: [one.measured_at, one.meter_id])
    if query.format == "csv":
        head = "meter_id,measurement_time(UTC),interval(minutes),pulses,register,revision,arrived_at(UTC)"
        return _csv(call, "\r\n".join([head, *map(_line, found), ""]).encode(), cursor)
    return Answer(Readings([_reading(one) for one in found], cursor), headers=link(call, cursor))


def _wanted(
    call: Call,
    query: MeasurementsQuery | ReadingsQuery,
    step: timedelta,
    meters: Sequence[int] | None,
    sites: Sequence[int] | None,
) -> Wanted:
    after = read_cursor(query, [datetime, int])
    last = None if after is None else (after[0], after[1])
    start = ceil_to(query.from_, step)
    return Wanted(call.organization_id, start, query.until, step, meters, sites, query.as_of, last, query.limit + 1)


async def _whose(
    call: Call, meter_ids: Sequence[int], site_ids: Sequence[int]
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """Return the meters to look at (None: all) and the sites where they must stand at the time (None: wherever).

    Raises Problem for a meter or a site that is not the caller's to see.
    """
    held = call.caller.site_ids
    if site_ids:
        rows = await call.connection.fetch(
            "SELECT site_id FROM site WHERE organization_id = $1 AND site_id = ANY ($2::int[])",
            *(call.organization_id, list(site_ids)),
        )
        known = {row["site_id"] for row in rows if call.caller.sees_site(row["site_id"])}
        _all_known(set(site_ids) - known, "site")
    sites = list(site_ids) or held
    at_sites = None
    if sites is not None:
        at_sites = set(await measurement_queries.meters_of_sites(call.connection, call.organization_id, sites))
    if not meter_ids:
        return (None if at_sites is None else sorted(at_sites)), sites
    own = await measurement_queries.own_meters(call.connection, call.organization_id, meter_ids)
    if held is not None:
        own &= set(await measurement_queries.meters_of_sites(call.connection, call.organization_id, held))
    _all_known(set(meter_ids) - own, "meter")
    return sorted(own if at_sites is None else own & at_sites), sites


def _all_known(missing: set[int], what: str) -> None:
    if missing:
        raise not_found(f"{what} {min(missing)}")


def _check_range(start: datetime, until: datetime, days: int, what: str) -> None:
    if until <= start:
        raise invalid("until", "until must be later than from")
    if start.year < 1970 or until.year > 9000:
        raise invalid("from", "the range lies in no time that meters know")
    if until - start > timedelta(days=days):
        raise invalid("until", f"a request {what} spans {days} days at most; ask for a shorter range")


def _csv(call: Call, body: bytes, cursor: str | None) -> Answer:
    """Return a page as a file; the next page is in the Link header."""
    return Answer(body, headers=link(call, cursor), media_type=CSV)


def _render(rows: Sequence[MeasurementRow], resolution: int) -> bytes:
    """Return windows as an export's CSV has them: twelve columns, two decimals, N/A."""
    part_format = csv_format("\r\n", defuse=True)
    records = [
        Record(
            *(one.meter_id, one.meter_type, Utility(one.utility), one.meter_name, one.meter_unit, one.window_start),
            *(resolution, one.site_id, one.site_name, one.energy_wh, one.volume),
        )
        for one in rows
    ]
    return part_format.assemble(render_rows(part_format.layout, records)) if records else part_format.head


def _reading(one: ReadingRow) -> ReadingShown:
    pulses, register = (None, one.value) if one.is_register else (one.value, None)
    return ReadingShown(
        one.measured_at, one.meter_id, one.interval_minutes, pulses, register, one.revision, one.arrived_at
    )


def _line(one: ReadingRow) -> str:
    pulses, register = ("", one.value) if one.is_register else (one.value, "")
    arrived_at = one.arrived_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    cells = (one.meter_id, iso_seconds(one.measured_at), one.interval_minutes, pulses, register, one.revision)
    return ",".join(map(str, (*cells, arrived_at)))


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/measurements", "list_measurements", "Closed windows, as JSON or as the CSV of an export"),
        *(list_measurements, "viewer", Measurements),
        query=MeasurementsQuery,
        media_types=("application/json", "text/csv"),
        codes=("not_found",),
    ),
    Endpoint(
        *("GET", "/v1/readings", "list_readings", "What meters reported: the newest versions, or as known then"),
        *(list_readings, "viewer", Readings),
        query=ReadingsQuery,
        media_types=("application/json", "text/csv"),
        codes=("not_found",),
    ),
)
