"""A small catalog by plain SQL, for tests of single services."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

ORGANIZATION_ID = 1
SITE_ID = 1


async def seed_catalog(database_url: str, *, meters: int = 10, inputs_per_logger: int = 5) -> None:
    """Register electricity meters 1 … `meters` of 0.001 kWh a pulse, on the inputs 1 … of loggers LG-0, LG-1 and so on.

    The bridge BR-0 may report every one of them by its id.
    """
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("UPDATE catalog_revision SET revision = 1")
            await connection.execute(
                """
                INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Test', 1);
                INSERT INTO site (site_id, organization_id, revision) VALUES (1, 1, 1);
                INSERT INTO site_description VALUES (1, '-infinity', 1, 'North depot', 'Europe/Berlin');
                INSERT INTO device VALUES ('BR-0', 1, 'bridge', 1);
                """
            )
            await connection.execute(
                "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
                "SELECT number, 1, 'Electricity', 'electricity', 1 FROM generate_series(1, $1::integer) number",
                meters,
            )
            await connection.execute(
                "INSERT INTO meter_configuration "
                "(meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
                "SELECT meter_id, '-infinity', 1, 'Meter ' || meter_id, 1, 'kWh', 0.001 FROM meter"
            )
            await connection.execute(
                "INSERT INTO device SELECT DISTINCT 'LG-' || (meter_id - 1) / $1::integer, 1, 'logger', 1 FROM meter",
                inputs_per_logger,
            )
            await connection.execute(
                "INSERT INTO input_attachment SELECT 'LG-' || (meter_id - 1) / $1::integer, "
                "(meter_id - 1) % $1::integer + 1, '-infinity', 1, meter_id FROM meter",
                inputs_per_logger,
            )
            await connection.execute(
                "INSERT INTO bridge_attachment SELECT 'BR-0', meter_id, '-infinity', 1, true FROM meter"
            )
    finally:
        await connection.close()


def pulses(input_: int, measured_at: datetime, count: int, **more: Any) -> dict[str, Any]:
    """Return a logger's reading of one minute (or of `interval_minutes`)."""
    return {"input": input_, "measurement_time": _zulu(measured_at), "interval_minutes": 1, "pulses": count, **more}


def metered(meter_id: int, measured_at: datetime, count: int, **more: Any) -> dict[str, Any]:
    """Return a bridge's reading of one minute (or of `interval_minutes`)."""
    reading = {"meter_id": meter_id, "measurement_time": _zulu(measured_at), "interval_minutes": 1, "pulses": count}
    return {**reading, **more}


def upload(device_id: str, readings: Iterable[Any]) -> bytes:
    """Return a record's bytes."""
    record = {"device_id": device_id, "sent_at": "2026-11-20T10:01:02Z", "readings": list(readings)}
    return msgspec.json.encode(record)


def _zulu(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")
