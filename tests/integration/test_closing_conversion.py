"""What closing makes of pulses, by PostgreSQL's arithmetic, against numbers that were computed by hand."""

from datetime import timedelta

import asyncpg
import pytest

from services.platform.postgres import Pool
from tests.support.closing import MINUTE, T0, begin, close_all, configure, store_versions, version
from tests.support.conversion_cases import CASES, Case


@pytest.fixture
async def closed(pool: Pool, database_url: str) -> str:
    """Give windows in which each case is a meter of its own, with one reading."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "UPDATE catalog_revision SET revision = 1;"
            "INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Test', 1);"
            "INSERT INTO site (site_id, organization_id, revision) VALUES (1, 1, 1);"
        )
        for meter_id, case in enumerate(CASES, start=1):
            await connection.execute(
                "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
                "VALUES ($1, 1, $2, $3, 1)",
                meter_id,
                case.meter_type,
                case.conversion.utility.value,
            )
            await configure(connection, meter_id, case.conversion, unit=case.unit)
    finally:
        await connection.close()
    await store_versions(
        database_url, [version(meter_id, T0, case.pulses) for meter_id, case in enumerate(CASES, start=1)]
    )
    until = T0 + timedelta(hours=2)
    await close_all(await begin(pool, database_url, until), until)
    return database_url


async def test_each_type_in_each_unit_is_closed_to_what_was_computed_by_hand(closed: str) -> None:
    connection = await asyncpg.connect(closed)
    try:
        rows = await connection.fetch(
            "SELECT meter_id, resolution_minutes, window_start, pulses, energy_wh, volume FROM measurement"
        )
    finally:
        await connection.close()
    found = {(row["meter_id"], row["resolution_minutes"]): row for row in rows}
    assert len(rows) == len(found) == len(CASES) * 4
    for (meter_id, _resolution), row in found.items():
        case: Case = CASES[meter_id - 1]
        assert row["window_start"] <= T0 < row["window_start"] + row["resolution_minutes"] * MINUTE
        assert (row["pulses"], row["energy_wh"], row["volume"]) == (case.pulses, *case.expected), case
