"""Bringing a list of meters in as CSV: all of them, or none and a report for each line."""

from collections.abc import Iterable
from typing import Annotated

import msgspec

from services.api.http.call import Call
from services.api.http.decoding import Text
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.problems import LineProblem, Problem
from services.api.http.routes.sites import check_zone
from services.api.meter_import import ImportRefusedError, ImportRules, import_meters
from services.core.csv_table import Problem as LineFault
from services.core.meter_csv import parse_meter_csv

_MOST_LINES = 1_000


class ImportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the file is taken."""

    time_zone: Annotated[Text, msgspec.Meta(description="IANA zone of sites that the file creates.")] = "UTC"
    dry_run: Annotated[bool, msgspec.Meta(description="Say what would happen, and write nothing.")] = False


class ImportReport(msgspec.Struct, frozen=True):
    """What the file did, or (`dry_run`) would have done."""

    dry_run: bool
    meters: int
    sites: int
    devices: int
    unchanged: int
    catalog_revision: int | None


async def import_csv(call: Call) -> Answer:
    """Register the meters of a CSV file."""
    query = call.query(ImportQuery)
    check_zone(query.time_zone)
    try:
        text = call.raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem("malformed_body", f"the file is not UTF-8: the byte number {error.start + 1} is wrong") from None
    if "\0" in text:
        raise Problem("malformed_body", "the file holds the character U+0000, which no text has")
    found = parse_meter_csv(text)
    if found.problems:
        raise _refused(found.problems)
    if not found.meters:
        raise _refused([LineFault(1, "there is no meter in it")])
    name: str = await call.connection.fetchval(
        "SELECT name FROM organization WHERE organization_id = $1", call.organization_id
    )
    trial = call.connection.transaction()
    await trial.start()
    try:
        done = await import_meters(call.connection, name, found.meters, ImportRules(query.time_zone))
    except ImportRefusedError as refused:
        raise _refused(refused.problems) from None
    if query.dry_run:
        await trial.rollback()
    else:
        await trial.commit()
    report = ImportReport(
        *(query.dry_run, done.meters, done.sites, done.devices, done.unchanged),
        None if query.dry_run else done.revision,
    )
    if report.catalog_revision is not None:
        await call.audit("meter.import", "-", None, report)
    return Answer(report)


def _refused(problems: Iterable[LineFault]) -> Problem:
    lines = [LineProblem(one.line, one.message) for one in problems]
    count = "one problem" if len(lines) == 1 else f"{len(lines):,} problems"
    more = "" if len(lines) <= _MOST_LINES else f"; the first {_MOST_LINES:,} are listed"
    return Problem("import_refused", f"the file has {count}, so nothing was written{more}", lines=lines[:_MOST_LINES])


ENDPOINTS = (
    Endpoint(
        *("POST", "/v1/meters/import", "import_meters", "Register the meters of a CSV file, all or none"),
        *(import_csv, "admin", ImportReport),
        query=ImportQuery,
        body_form="csv",
        is_whole_organization=True,
        is_create=True,
        codes=("malformed_body", "import_refused"),
    ),
)
