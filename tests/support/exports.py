"""Closed windows and export jobs by plain SQL, and delivery running inside the test."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from pydantic import SecretStr

from services.delivery.app import deliver
from services.delivery.settings import DeliverySettings
from services.platform.health import Health
from tests.support.planted import leaks_in, written_by_the_test

# Nothing listens there: delivery works without its doorbell.
NO_KAFKA = "127.0.0.1:9"
ORGANIZATION_ID = 1
DAY = datetime(2026, 11, 20, tzinfo=UTC)

METER_TYPES = [
    ("Electricity", "electricity", "kWh"),
    ("Heat", "heat", "kWh"),
    ("Gas", "gas", "m3"),
    ("Water", "water", "m3"),
    ("Air", "air", "Nm3"),
]


def at(hour: int, minute: int = 0) -> datetime:
    """Return a time on the tests' day."""
    return DAY + timedelta(hours=hour, minutes=minute)


@dataclass(frozen=True)
class Exports:
    """One organization with sites, meters, closed windows and jobs in a database of the test's own."""

    url: str

    async def execute(self, query: str, *arguments: object) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(query, *arguments)
        finally:
            await connection.close()

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.url)
        try:
            return [dict(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    async def column(self, query: str, *arguments: object) -> list[Any]:
        return [next(iter(row.values())) for row in await self.fetch(query, *arguments)]

    async def seed(self, *, meters: int, sites: int = 2, name: str = "Meter") -> None:
        """Register meters 1 … `meters` of all utilities in turn; meter n is at site n mod `sites` + 1."""
        await self.execute(
            """
            UPDATE catalog_revision SET revision = 1;
            INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Test', 1);
            """
        )
        await self.execute(
            "INSERT INTO site (site_id, organization_id, revision) SELECT s, 1, 1 FROM generate_series(1, $1::int) s",
            sites,
        )
        await self.execute(
            "INSERT INTO site_description SELECT site_id, '-infinity', 1, 'Site ' || site_id, 'UTC' FROM site"
        )
        types, utilities, units = zip(*METER_TYPES, strict=True)
        await self.execute(
            "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
            "SELECT n, 1, ($2::text[])[n % 5 + 1], ($3::text[])[n % 5 + 1], 1 FROM generate_series(1, $1::int) n",
            meters, types, utilities,
        )  # fmt: skip
        await self.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "SELECT meter_id, '-infinity', 1, $1 || ' ' || meter_id, meter_id % $2::int + 1, "
            "($3::text[])[meter_id % 5 + 1], 1 FROM meter",
            name, sites, units,
        )  # fmt: skip

    async def add_organization(self, organization_id: int) -> None:
        """Register another organization with one meter, whose id is a thousand times its own."""
        await self.execute(
            "INSERT INTO organization (organization_id, name, revision) VALUES ($1, 'Org ' || $1::int, 1)",
            organization_id,
        )
        own = organization_id * 1_000
        await self.execute(
            "INSERT INTO site (site_id, organization_id, revision) VALUES ($1, $2, 1)", own, organization_id
        )
        await self.execute("INSERT INTO site_description VALUES ($1, '-infinity', 1, 'Site', 'UTC')", own)
        await self.execute(
            "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
            "VALUES ($1, $2, 'Heat', 'heat', 1)",
            own, organization_id,
        )  # fmt: skip
        await self.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "VALUES ($1, '-infinity', 1, 'Meter', $1, 'kWh', 1)",
            own,
        )

    async def close_windows(
        self, resolution: int, start: datetime, end: datetime, *, meters: Sequence[int] | None = None
    ) -> None:
        """Close the windows from `start` to `end`, with a row of each meter (of `meters` only, if given) in each."""
        table = f"measurement_{resolution}m"
        await self.execute(
            f"CREATE TABLE IF NOT EXISTS {table}_all PARTITION OF {table} FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
        )
        await self.execute(
            """
            INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                     intervals_expected, pulses, energy_wh, volume)
            SELECT w, meter_id, organization_id, $1, 1, 1, meter_id,
                   CASE WHEN utility IN ('electricity', 'heat', 'gas') THEN meter_id * 1.005 END,
                   CASE WHEN utility IN ('gas', 'water', 'air') THEN meter_id * 0.1 END
            FROM generate_series($2::timestamptz, $3::timestamptz - interval '1 minute', make_interval(mins => $1)) w,
                 meter
            WHERE $4::int[] IS NULL OR meter_id = ANY ($4)
            """,
            resolution, start, end, None if meters is None else list(meters),
        )  # fmt: skip
        await self.closed(resolution, end, opened_at=start)

    async def closed(self, resolution: int, until: datetime, *, opened_at: datetime) -> None:
        """Say that windows are closed, without giving them rows."""
        await self.execute(
            "INSERT INTO window_closed VALUES ($1, $2, $3) "
            "ON CONFLICT (resolution_minutes) DO UPDATE SET closed_until = excluded.closed_until",
            resolution, opened_at, until,
        )  # fmt: skip

    async def add_job(
        self,
        settings: Mapping[str, Any],
        *,
        frequency: int = 60,
        resolution: int = 15,
        starts_at: datetime = DAY,
        sites: Sequence[int] | None = None,
        name: str = "Hourly",
        transport: str = "https",
        data: str = "meters_measurements",
        organization_id: int = ORGANIZATION_ID,
    ) -> int:
        """Add a job with a first version and return its id."""
        [job_id] = await self.column(
            "INSERT INTO export_job (organization_id, starts_at) VALUES ($2, $1) RETURNING job_id",
            starts_at,
            organization_id,
        )
        await self.add_version(
            job_id,
            settings,
            effective_from=starts_at,
            frequency=frequency,
            resolution=resolution,
            sites=sites,
            name=name,
            transport=transport,
            data=data,
            organization_id=organization_id,
        )
        return int(job_id)

    async def add_version(
        self,
        job_id: int,
        settings: Mapping[str, Any],
        *,
        effective_from: datetime,
        frequency: int = 60,
        resolution: int = 15,
        sites: Sequence[int] | None = None,
        name: str = "Hourly",
        transport: str = "https",
        data: str = "meters_measurements",
        organization_id: int = ORGANIZATION_ID,
    ) -> None:
        """Edit a job. Settings are stored as they are given; what the product stores is sealed."""
        if leaks_in(json.dumps(settings).encode()):
            written_by_the_test(self.url, "export_job_version")
        await self.execute(
            "INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, "
            "frequency_minutes, resolution_minutes, site_ids, transport, transport_settings) "
            "SELECT $10::int, $1, (SELECT count(*) + 1 FROM export_job_version WHERE job_id = $1), $2, $3, "
            "$9, $4, $5, $6, $8, $7",
            job_id, effective_from, name, frequency, resolution, None if sites is None else list(sites),
            json.dumps(settings), transport, data, organization_id,
        )  # fmt: skip

    async def clock(self, instant: datetime) -> None:
        """Set the platform's clock, which is the arrival of readings."""
        await self.execute(
            "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, epoch, owner) "
            "VALUES ('readings.logger', 0, 0, $1, 1, 'test') "
            "ON CONFLICT (topic, partition) DO UPDATE SET watermark = excluded.watermark",
            instant,
        )

    async def add_catalog_job(self, settings: Mapping[str, Any], **more: Any) -> int:
        """Add a catalog job with a first version and return its id."""
        daily: dict[str, Any] = {"frequency": 1440, "resolution": 0, "name": "Catalog", "data": "catalog"}
        return await self.add_job(settings, **{**daily, **more})

    async def attach(self) -> None:
        """Register loggers with two inputs each for the odd meters, and one bridge for the others."""
        await self.execute(
            """
            INSERT INTO device (device_id, organization_id, kind, revision)
            SELECT DISTINCT 'LG-' || lpad((meter_id / 4)::text, 6, '0'), 1, 'logger', 1
            FROM meter WHERE meter_id % 2 = 1
            UNION ALL SELECT 'BR-000001', 1, 'bridge', 1
            """
        )
        await self.execute(
            "INSERT INTO input_attachment SELECT 'LG-' || lpad((meter_id / 4)::text, 6, '0'), meter_id / 2 % 2 + 1, "
            "'2026-01-01Z', 1, meter_id FROM meter WHERE meter_id % 2 = 1"
        )
        await self.execute(
            "INSERT INTO bridge_attachment SELECT 'BR-000001', meter_id, '-infinity', 1, true FROM meter "
            "WHERE meter_id % 2 = 0"
        )

    async def runs(self, job_id: int) -> list[tuple[datetime, str, int, int]]:
        """Return slot, state, parts and rows of a job's runs."""
        rows = await self.fetch(
            "SELECT slot_start, state, part_count, row_count FROM export_run WHERE job_id = $1 ORDER BY slot_start",
            job_id,
        )
        return [(row["slot_start"], row["state"], row["part_count"], row["row_count"]) for row in rows]

    async def states(self, job_id: int) -> list[str]:
        """Return the states of a job's runs, oldest first."""
        return [state for _, state, _, _ in await self.runs(job_id)]

    async def attempts(self, job_id: int) -> list[tuple[int, str, str]]:
        """Return part, outcome and reason of a job's attempts, in their order."""
        rows = await self.fetch(
            "SELECT part, outcome, reason FROM delivery_attempt WHERE job_id = $1 ORDER BY started_at, attempt", job_id
        )
        return [(row["part"], row["outcome"], row["reason"]) for row in rows]

    async def progress(self, job_id: int) -> dict[str, Any]:
        """Return where a job stands; empty while nobody follows it."""
        rows = await self.fetch("SELECT * FROM export_job_progress WHERE job_id = $1", job_id)
        return rows[0] if rows else {}


def quick_settings(url: str, **more: Any) -> DeliverySettings:
    """Return settings under which nothing takes longer than it must."""
    settings = DeliverySettings.model_validate(
        {
            "kafka_bootstrap_servers": NO_KAFKA,
            "database_url": SecretStr(url),
            "instance": "delivery-in-test",
            "look_seconds": 0.05,
            "first_retry_seconds": 0.05,
            "longest_retry_seconds": 0.2,
            "allowed_destinations": "127.0.0.0/8, ::1",
        }
    )
    return settings.model_copy(update=more)


@asynccontextmanager
async def delivering(url: str, *, transport: str = "https", **more: Any) -> AsyncIterator[Health]:
    """Run delivery over one transport inside the test."""
    stopping, health = asyncio.Event(), Health()
    task = asyncio.create_task(deliver(transport, quick_settings(url, **more), health, stopping))
    try:
        yield health
    finally:
        stopping.set()
        await task
