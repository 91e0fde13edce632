"""A unit that was corrected after windows were closed: no export puts it beside values of the old one."""

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.api.measurement_queries import Wanted, measurements
from services.api.request_store import request_resend
from services.core.conversion import Conversion, Utility
from services.core.manual_export import ExportFormat
from services.core.windows import RESOLUTIONS_MINUTES
from services.delivery.closed_units import ClosedUnits
from services.platform.postgres import Pool, transaction
from services.windowing.store import WindowStore
from tests.integration.test_requests import asker, until_states
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    begin,
    close_all,
    configure,
    seed_meters,
    store_progress,
    store_versions,
    version,
)
from tests.support.exports import Exports, at, delivering
from tests.support.manual_exports import Exporting, TurnedClock, wanted_export
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, status

HOUR = timedelta(hours=1)
GALLONS = Conversion(Utility.WATER, Decimal("132.086"))


async def closed_hours(pool: Pool, url: str) -> WindowStore:
    """Close an hour of all meters; the readings of the next one are there."""
    await seed_meters(url, UTILITIES)
    await pool.execute("INSERT INTO site_description VALUES (1, '-infinity', 1, 'Depot', 'UTC')")
    await store_versions(
        url, [version(meter, T0 + minute * MINUTE, 1) for meter in UTILITIES for minute in range(0, 120, 5)]
    )
    store = await begin(pool, url, T0 + HOUR + 5 * MINUTE)
    await close_more(store, url, T0 + HOUR)
    return store


async def close_more(store: WindowStore, url: str, until: Any) -> None:
    await store_progress(url, until + 10 * MINUTE, first_arrival=T0)
    await close_all(store, until)
    for resolution in RESOLUTIONS_MINUTES:
        await store.move_closed(resolution)


async def correct(pool: Pool) -> None:
    """Say that meter 4 has counted gallons since ever, and give meter 5 another name."""
    async with transaction(pool) as connection:
        await connection.execute("UPDATE catalog_revision SET revision = 2")
        await configure(connection, 4, GALLONS, revision=2, unit="Gallon")
        await connection.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "SELECT meter_id, valid_from, 2, 'Compressor', site_id, unit, units_per_pulse FROM meter_configuration "
            "WHERE meter_id = 5"
        )


def water(rows: Sequence[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """Return hour, unit and volume of the rows of meter 4."""
    return {(r["MEASUREMENT_TIME(UTC)"][11:13], r["METER_UNIT"], r["VOLUME"]) for r in rows if r["METER_ID"] == 4}


async def test_a_run_planned_after_the_correction_has_the_unit_that_its_values_were_made_by(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool, database_url: str
) -> None:
    store = await closed_hours(pool, database_url)
    await correct(pool)
    job_id = await exports.add_job(to, starts_at=at(10))
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        await close_more(store, database_url, T0 + 2 * HOUR)
        await until_states(exports, job_id, ["delivered"] * 2)
        first, second = (json.loads(one.body)["measurements"] for one in receiver.accepted)
    assert water(first) == {("10", "m3", "1.50")}
    assert water(second) == {("11", "Gallon", "396.26")}
    assert {row["METER_NAME"] for row in first if row["METER_ID"] == 5} == {"Compressor"}
    # Another process makes the same bytes anew.
    async with delivering(exports.url):
        await request_resend(pool, 1, job_id, at(10), asker())
        await eventually_async(lambda: len(receiver.accepted) == 3)
        await until_states(exports, job_id, ["delivered"] * 2)
    assert receiver.accepted[2].body == receiver.accepted[0].body


async def test_a_run_that_was_frozen_with_the_corrected_unit_is_sent_as_it_was_fixed(
    exports: Exports,
    receiver: ScriptedReceiver,
    to: dict[str, Any],
    pool: Pool,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Units were not always put right. Of such a run nothing is sent that differs from what its manifest lists."""
    await closed_hours(pool, database_url)
    await correct(pool)
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to, starts_at=at(10))
    with monkeypatch.context() as before:
        before.setattr(ClosedUnits, "known", lambda *_: ())
        async with delivering(exports.url):
            await eventually_async(lambda: receiver.received)
    receiver.otherwise = status(200)
    fixed = await exports.column("SELECT sha256 FROM export_part ORDER BY part")
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    assert [hashlib.sha256(one.body).digest() for one in receiver.accepted] == fixed
    assert water(json.loads(receiver.accepted[0].body)["measurements"]) == {("10", "Gallon", "1.50")}


async def test_a_run_over_windows_closed_before_and_after_has_both_units(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool, database_url: str
) -> None:
    store = await closed_hours(pool, database_url)
    await correct(pool)
    await close_more(store, database_url, T0 + 2 * HOUR)
    await pool.execute("UPDATE window_closed SET closed_until = $1", at(24))
    job_id = await exports.add_job(to, starts_at=at(0), frequency=1440)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    [sent] = receiver.accepted
    assert water(json.loads(sent.body)["measurements"]) == {("10", "m3", "1.50"), ("11", "Gallon", "396.26")}


@pytest.mark.parametrize("meters", [None, [4, 5]], ids=["all", "few"])
async def test_the_measurements_of_the_api_have_the_unit_of_their_values(
    pool: Pool, database_url: str, meters: list[int] | None
) -> None:
    store = await closed_hours(pool, database_url)
    await correct(pool)
    await close_more(store, database_url, T0 + 2 * HOUR)
    wanted = Wanted(1, T0, T0 + 2 * HOUR, HOUR, meters, None, None, None, 100)
    async with transaction(pool) as connection:
        rows = await measurements(connection, 60, wanted)
    assert [(row.meter_unit, row.volume) for row in rows if row.meter_id == 4] == [
        ("m3", Decimal(6)),
        ("Gallon", Decimal("1585.032")),
    ]
    assert {row.meter_name for row in rows if row.meter_id == 5} == {"Compressor"}
    async with transaction(pool) as connection:
        await connection.execute("DELETE FROM window_closing")
        rows = await measurements(connection, 60, wanted)
    assert {row.meter_unit for row in rows if row.meter_id == 4} == {"Gallon"}


@pytest.mark.parametrize("export_format", [ExportFormat.CSV, ExportFormat.JSON_LINES])
async def test_an_export_of_windows_whose_readings_are_gone_has_the_unit_of_their_values(
    pool: Pool, database_url: str, tmp_path: Path, export_format: ExportFormat
) -> None:
    store = await closed_hours(pool, database_url)
    await correct(pool)
    await close_more(store, database_url, T0 + 2 * HOUR)
    exporting = Exporting(pool, tmp_path / "store", TurnedClock())
    wanted = wanted_export(T0, T0 + 2 * HOUR, 60)._replace(format=export_format)
    # From the readings all is counted anew, by the factors that are known now.
    assert units(await exporting.file(wanted)) == [("Gallon", "1585.03"), ("Gallon", "1585.03")]
    await pool.execute("DROP TABLE reading_20261120; DROP TABLE reading_superseded_20261120")
    assert units(await exporting.file(wanted)) == [("m3", "6.00"), ("Gallon", "1585.03")]


def units(content: bytes) -> list[tuple[str, str]]:
    """Return unit and volume of the rows of meter 4."""
    text = content.decode()
    if text.startswith("{"):
        rows = map(json.loads, text.splitlines())
        return [(row["METER_UNIT"], row["VOLUME"]) for row in rows if row["METER_ID"] == 4]
    lines = [line.split(",") for line in text.splitlines()]
    return [(line[3], line[-1]) for line in lines if line[0] == "4"]
