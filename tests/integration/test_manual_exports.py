"""Manual exports on a real PostgreSQL and a real folder: their content against the model."""

import hashlib
import io
import random
from datetime import timedelta
from decimal import Decimal

import asyncpg
import pyarrow.parquet as pq
import pytest

from services.api.manual_exports import list_exports
from services.core.conversion import two_decimals
from services.core.manual_export import ExportFormat
from services.core.readings import ReadingVersion
from services.platform.postgres import transaction
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    configure,
    many_versions,
    store_progress,
    store_versions,
    version,
)
from tests.support.manual_exports import Exporting, expected_export, rendered, wanted_export

HOUR = timedelta(hours=1)
END = T0 + 3 * HOUR


def with_registers(seed: int) -> list[ReadingVersion]:
    """Return readings of which some are registers: rising, rolling over, reset, with pulses beside and in between."""
    rng = random.Random(seed)
    versions = many_versions(seed)
    register = {meter: rng.randrange(100_000) for meter in UTILITIES}
    found = []
    for one in versions:
        if one.meter_id in {1, 4} and rng.random() < 0.8:
            register[one.meter_id] = (register[one.meter_id] + rng.randrange(50)) % 100_000
            if rng.random() < 0.02:
                register[one.meter_id] = rng.randrange(100)
            found.append(one._replace(value=register[one.meter_id], is_register=rng.random() < 0.97))
        else:
            found.append(one)
    return found


@pytest.mark.parametrize("resolution", [1, 5, 15, 60])
@pytest.mark.parametrize("chunk", [None, 1, 2])
async def test_equals_the_model(exporting: Exporting, database_url: str, resolution: int, chunk: int | None) -> None:
    versions = with_registers(resolution)
    await store_versions(database_url, versions)
    for start in (T0, T0 + HOUR):
        for export_format in (ExportFormat.CSV, ExportFormat.JSON_LINES):
            wanted = wanted_export(start, END, resolution, format=export_format)
            content = await exporting.file(wanted, chunk_minutes=None if chunk is None else chunk * resolution)
            rows = expected_export(versions, wanted)
            assert len(rows) > 4
            assert content.decode().splitlines() == rendered(rows, export_format).decode().splitlines()
            assert content == rendered(rows, export_format)
            async with transaction(exporting.pool) as connection:
                [export, *_] = await list_exports(connection, 1, limit=1)
            assert export.row_count == len(rows)
            assert export.sha256 == hashlib.sha256(content).digest()


async def test_numbers_of_any_size_are_exact(exporting: Exporting, database_url: str) -> None:
    """Small whole numbers are written in another way than large ones and fractions."""
    values = [0, 1, 10**8 - 1, 10**8, 10**8 + 1, 10**12 + 7, 10**17 + 3]
    versions = [
        version(meter, T0 + 5 * place * MINUTE, value) for place, value in enumerate(values) for meter in UTILITIES
    ]
    await store_versions(database_url, versions)
    for export_format in (ExportFormat.CSV, ExportFormat.JSON_LINES):
        wanted = wanted_export(T0, END, 5, format=export_format)
        rows = expected_export(versions, wanted)
        assert len(rows) == len(versions)
        assert await exporting.file(wanted) == rendered(rows, export_format)


@pytest.mark.parametrize("after_minutes", [20, 90, 151])
async def test_says_what_was_known_then(exporting: Exporting, database_url: str, after_minutes: int) -> None:
    versions = with_registers(7)
    await store_versions(database_url, versions)
    await store_progress(database_url, END + 10 * HOUR, first_arrival=T0)
    for selective in (True, False):
        wanted = wanted_export(T0, END, 5, known_at=T0 + after_minutes * MINUTE)
        export = await exporting.ask(wanted)
        await exporting.begin_with(export, 15)
        await set_selective(exporting, export.export_id, selective)
        await exporting.work()
        rows = expected_export(versions, wanted)
        assert rows
        assert await exporting.content(export.export_id) == rendered(rows, ExportFormat.CSV)


async def test_reading_meter_by_meter_gives_the_same(exporting: Exporting, database_url: str) -> None:
    versions = with_registers(11)
    await store_versions(database_url, versions)
    files = []
    for selective in (True, False):
        export = await exporting.ask(wanted_export(T0, END, 5, meter_ids=[1, 3, 5]))
        await exporting.begin_with(export, 30)
        await set_selective(exporting, export.export_id, selective)
        await exporting.work()
        files.append(await exporting.content(export.export_id))
    assert files[0] == files[1]
    assert files[0] == rendered(
        expected_export(versions, wanted_export(T0, END, 5, meter_ids=[1, 3, 5])), ExportFormat.CSV
    )


async def set_selective(exporting: Exporting, export_id: int, selective: bool) -> None:
    async with transaction(exporting.pool) as connection:
        await connection.execute(
            "UPDATE manual_export_progress SET is_selective = $2 WHERE export_id = $1", export_id, selective
        )


async def test_parquet_holds_the_same_rows_exactly(exporting: Exporting, database_url: str) -> None:
    versions = with_registers(3)
    await store_versions(database_url, versions)
    wanted = wanted_export(T0, END, 5, format=ExportFormat.PARQUET)
    content = await exporting.file(wanted, chunk_minutes=30)
    file = pq.ParquetFile(io.BytesIO(content))
    assert file.metadata.num_row_groups == 5
    rows = expected_export(versions, wanted)
    found = pq.read_table(io.BytesIO(content)).to_pylist()
    assert [(one["measurement_time"], one["meter_id"]) for one in found] == [
        (row.measured_at, row.meter_id) for row in rows
    ]
    for one, row in zip(found, rows, strict=True):
        energy, volume = (
            None if amount is None else Decimal(two_decimals(amount)) for amount in (row.energy_wh, row.volume)
        )
        assert (one["energy_wh"], one["volume"]) == (energy, volume)
        assert (one["meter_name"], one["site_name"], one["meter_unit"]) == (
            row.meter_name,
            row.site_name,
            row.meter_unit,
        )
        assert one["power_w"] == (None if row.energy_wh is None else Decimal(two_decimals(row.energy_wh * 12)))


async def test_names_and_sites_are_those_of_the_time(exporting: Exporting, database_url: str) -> None:
    versions = many_versions(5)
    await store_versions(database_url, versions)
    moved_at = T0 + HOUR
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE catalog_revision SET revision = 2")
    await configure(connection, 2, UTILITIES[2], valid_from=moved_at, revision=2, modulus=100_000)
    await connection.execute(
        "UPDATE meter_configuration SET site_id = 2, name = 'Moved' WHERE meter_id = 2 AND revision = 2"
    )
    await connection.close()
    for sites in (None, [1], [2], [1, 2]):
        wanted = wanted_export(T0, END, 15, site_ids=sites)
        rows = expected_export(versions, wanted, [(moved_at, 2, "Moved", 2)])
        assert rows
        assert await exporting.file(wanted) == rendered(rows, ExportFormat.CSV)


async def test_an_export_of_nothing_is_an_empty_file(exporting: Exporting) -> None:
    wanted = wanted_export(T0 - timedelta(days=366), T0, 5)
    assert await exporting.file(wanted) == rendered([], ExportFormat.CSV)
    parquet = await exporting.file(wanted._replace(format=ExportFormat.PARQUET))
    assert pq.read_table(io.BytesIO(parquet)).num_rows == 0


async def test_windows_stand_for_readings_that_are_no_longer_kept(exporting: Exporting, database_url: str) -> None:
    day = T0.replace(hour=0)
    versions = [version(4, day + minute * 5 * MINUTE, minute, interval_minutes=5) for minute in range(12)]
    await store_versions(database_url, versions)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE measurement_5m_all PARTITION OF measurement_5m FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
    )
    await connection.execute(
        "INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present, "
        "intervals_expected, pulses, volume) SELECT s, 4, 1, 5, 1, 1, 7, 3.5 "
        "FROM generate_series($1::timestamptz, $2::timestamptz, interval '5 minutes') s",
        day - HOUR,
        day + HOUR,
    )
    await connection.close()
    lines = (await exporting.file(wanted_export(day - HOUR, day + HOUR, 5), chunk_minutes=50)).decode().splitlines()
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["3.50"] * 12 + [
        f"{minute * 0.5:.2f}" for minute in range(12)
    ]


async def test_registers_go_on_from_what_came_before_the_range(exporting: Exporting, database_url: str) -> None:
    before = version(4, T0 - timedelta(days=9), 100, is_register=True, interval_minutes=5)
    within = version(4, T0, 130, is_register=True, interval_minutes=5)
    await store_versions(database_url, [before, within])
    lines = (await exporting.file(wanted_export(T0, T0 + HOUR, 5))).decode().splitlines()
    assert lines[1].endswith(",180.00,15.00")
    assert len(lines) == 2


async def test_each_chunk_is_a_snapshot(exporting: Exporting, database_url: str) -> None:
    """What is corrected before its chunk is made is in, what is corrected after it is not."""
    versions = [version(1, T0 + minute * MINUTE, 10) for minute in range(120)]
    await store_versions(database_url, versions)
    export = await exporting.ask(wanted_export(T0, T0 + 2 * HOUR, 60))
    await exporting.begin_with(export, 60)
    claim = await exporting.store.claim(exporting.clock.now())
    assert claim is not None
    loaded = await exporting.store.load(claim)
    made = await exporting.maker.make_next(claim, loaded)
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE reading SET value = 20, revision = 1")
    await connection.close()
    await exporting.store.release(claim, exporting.clock.now())
    await exporting.work()
    lines = (await exporting.content(export.export_id)).decode().splitlines()
    assert made.row_count == 1
    assert [line.split(",")[-3] for line in lines[1:]] == ["600.00", "1200.00"]


async def test_registers_go_on_from_a_closed_window_where_readings_are_gone(
    exporting: Exporting, database_url: str
) -> None:
    await store_versions(database_url, [version(4, T0, 130, is_register=True, interval_minutes=5)])
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE measurement_5m_all PARTITION OF measurement_5m FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
    )
    await connection.execute(
        "INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present, "
        "intervals_expected, pulses, volume, register_start, register_start_at, register_end, register_end_at) "
        "VALUES ($1, 4, 1, 5, 1, 1, 7, 3.5, 93, $1, 100, $2)",
        T0 - timedelta(days=99),
        T0 - timedelta(days=99) + timedelta(minutes=5),
    )
    await connection.close()
    lines = (await exporting.file(wanted_export(T0, T0 + HOUR, 5))).decode().splitlines()
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["15.00"]
