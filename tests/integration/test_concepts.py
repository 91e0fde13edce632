"""The example of docs/concepts.md, put through the real closing: every number of the page is what comes out."""

import json
import re
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest

from services.core.conversion import Conversion, Utility
from services.core.counting import RowFlag
from services.core.readings import ReadingVersion
from services.platform.postgres import Pool
from tests.support.closing import (
    MINUTE,
    T0,
    begin,
    close_all,
    configure,
    seed_meters,
    store_versions,
    stored_rows,
    version,
)
from tests.support.command import REPOSITORY, Meterpost

PAGE = (REPOSITORY / "docs" / "concepts.md").read_text(encoding="utf-8")
ELECTRICITY = Conversion(Utility.ELECTRICITY, Decimal("0.001"))
WATER = Conversion(Utility.WATER, Decimal("0.01"))
DAY = T0.replace(hour=0)

Line = dict[str, str]


def table(*columns: str) -> list[Line]:
    """Return the lines of the page's table with these columns."""
    head = "| " + " | ".join(columns) + " |\n"
    assert PAGE.count(head) == 1, columns
    lines = PAGE.split(head)[1].split("\n\n")[0].splitlines()[1:]
    return [dict(zip(columns, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]


def moment(text: str) -> datetime:
    hours, minutes, seconds = (int(part) for part in (text + ":00").split(":")[:3])
    return DAY + timedelta(hours=hours, minutes=minutes, seconds=seconds)


def readings() -> dict[str, ReadingVersion]:
    """Return the versions of the page by their number."""
    found = {}
    for line in table("#", "meter", "interval", "minutes", "says", "revision", "arrived"):
        [value] = re.findall(r"\d+", line["says"])
        found[line["#"]] = version(
            int(line["meter"]),
            moment(line["interval"]),
            int(value),
            interval_minutes=int(line["minutes"]),
            revision=int(line["revision"]),
            arrived_at=moment(line["arrived"]),
            is_register="register" in line["says"],
        )
    return found


@pytest.fixture
async def closed(pool: Pool, database_url: str) -> dict[str, ReadingVersion]:
    """Give the page's readings, stored, and their windows, closed and exported by a job."""
    found = readings()
    await seed_meters(database_url, {1: ELECTRICITY})
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
            "VALUES (2, 1, 'Water', 'water', 1)"
        )
        await configure(connection, 2, WATER, cadence_minutes=5, modulus=100_000)
        await connection.execute("INSERT INTO site_description VALUES (1, '-infinity', 1, 'North depot', 'UTC')")
        await connection.execute("INSERT INTO device VALUES ('BR-1', 1, 'bridge', 1)")
        await connection.execute(
            "INSERT INTO bridge_attachment SELECT 'BR-1', meter_id, '-infinity', 1, true FROM meter"
        )
        await connection.execute(
            "INSERT INTO export_job (job_id, organization_id, starts_at) OVERRIDING SYSTEM VALUE "
            "VALUES (1, 1, '-infinity')"
        )
        await connection.execute(
            "INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, "
            "frequency_minutes, resolution_minutes, transport, transport_settings) "
            "VALUES (1, 1, 1, '-infinity', 'J', 'meters_measurements', 60, 5, 'https', '{}')"
        )
        await connection.execute(
            "INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, "
            "state) VALUES (1, 1, $1, $2, 1, 1, 'delivered')",
            T0, T0 + 60 * MINUTE,
        )  # fmt: skip
    finally:
        await connection.close()
    await store_versions(database_url, found.values())
    store = await begin(pool, database_url, T0 + 90 * MINUTE, first=T0 - 60 * MINUTE)
    await close_all(store, T0 + 60 * MINUTE)
    await store.move_closed(5)
    return found


async def test_the_closed_windows_are_those_of_the_page(database_url: str, closed: dict[str, ReadingVersion]) -> None:
    assert len(closed) == 12
    told = {
        (row.window_start, row.meter_id): (
            row.pulses,
            f"{row.energy_wh} Wh" if row.energy_wh is not None else f"{row.volume} m3",
            f"{row.intervals_present} of {row.intervals_expected}",
            row.flags,
        )
        for row in await stored_rows(database_url, 5)
    }
    page = {
        (moment(line["window"]), int(line["meter"])): (
            int(line["pulses"]),
            line["amount"],
            line["intervals"],
            (RowFlag.SPANS_GAP | RowFlag.ROLLED_OVER) if "gap" in line["note"] else 0,
        )
        for line in table("window", "meter", "pulses", "amount", "intervals", "note")
    }
    assert told == page
    sums = [line["note"] for line in table("window", "meter", "pulses", "amount", "intervals", "note")]
    assert sum(map(int, sums[0].split(" + "))) == 167


@pytest.mark.usefixtures("closed")
def test_the_commands_of_the_page_answer_with_its_late_readings_and_rows(
    tmp_path: Path, database_url: str, closed: dict[str, ReadingVersion]
) -> None:
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})
    [block] = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    commands = [line.split()[1:] for line in block.splitlines()]
    assert [command[:2] for command in commands] == [
        ["windows", "show"], ["windows", "completeness"], ["readings", "as-of"], ["late", "list"], ["late", "export"],
    ]  # fmt: skip
    show, _completeness, as_of, late, export = ([*command, "--json"] for command in commands)
    for command in commands[:4]:
        meterpost.ok(*command)
    assert json.loads(meterpost.ok(*show))["arithmetic"][0] == "42 + 40 + 44 + 41 = 167 pulses"
    # At the window's cut-off that is what it holds.
    assert sum(one["value"] for one in json.loads(meterpost.ok(*as_of))["readings"]) == 167
    listed = {
        (one["meter_id"], one["measured_at"], one["arrived_at"]): (
            str(timedelta(seconds=one["late_by_seconds"])),
            one["verdict"],
            "nothing" if one["held_value"] is None else str(one["held_value"]),
        )
        for one in json.loads(meterpost.ok(*late))["readings"]
    }
    page = {
        key_of(closed[line["#"]]): (line["late by"], line["verdict"], line["window held"])
        for line in table("#", "late by", "verdict", "window held")
    }
    assert listed == page
    meterpost.ok(*export)
    rows = json.loads((tmp_path / "late.json").read_bytes())["measurements"]
    now = [
        (
            row["MEASUREMENT_TIME(UTC)"][11:16],
            str(row["METER_ID"]),
            Decimal(row["ENERGY(Wh)" if row["METER_ID"] == 1 else "VOLUME"]),
        )
        for row in rows
    ]
    assert now == [
        (line["window"], line["meter"], Decimal(line["amount now"].split()[0]))
        for line in table("window", "meter", "amount now")
    ]


def key_of(one: ReadingVersion) -> tuple[int, str, str]:
    return one.meter_id, f"{one.measured_at:%Y-%m-%dT%H:%M:%SZ}", f"{one.arrived_at:%Y-%m-%dT%H:%M:%SZ}"
