"""The demo organization: sites, loggers, bridges and meters of all five utilities, and a few export jobs."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from services.api.catalog_queries import platform_clock
from services.api.catalog_store import (
    BridgeLink,
    CatalogChange,
    InputLink,
    NewDevice,
    NewMeter,
    NewSite,
    catalog_change,
)
from services.api.job_queries import Job, list_jobs
from services.api.job_settings import JobSettings, NewJob, https_settings
from services.api.job_store import create_job, delete_job, edit_job
from services.core.conversion import Utility
from services.core.transport_secrets import SEALED, SIGNING_SECRET, signing_secrets
from services.platform.postgres import Pool, transaction
from services.platform.secrets import Vault

ORGANIZATION = "Demo Utilities"
INPUTS_PER_LOGGER = 4
METERS_PER_BRIDGE = 10
METERS_PER_SITE = 50

_SITES = (
    ("North depot", "Europe/Berlin"),
    ("Harbour mill", "Europe/London"),
    ("Old brewery", "Europe/Prague"),
    ("Glass works", "America/New_York"),
    ("Water tower", "Asia/Tokyo"),
    ("South campus", "Australia/Sydney"),
    ("City hall", "UTC"),
    ("Cold store", "Europe/Madrid"),
    ("Print shop", "America/Chicago"),
    ("Data hall", "Europe/Dublin"),
)


class _Kind(NamedTuple):
    meter_type: str
    utility: Utility
    unit: str
    units_per_pulse: Decimal
    normalization_factor: Decimal = Decimal(1)
    calorific_value: Decimal | None = None


_KINDS = (
    _Kind("Electricity", Utility.ELECTRICITY, "kWh", Decimal("0.001")),
    _Kind("Electricity", Utility.ELECTRICITY, "kWh", Decimal("0.0125")),
    _Kind("Electric Pulse Meter", Utility.ELECTRICITY, "kWh", Decimal("0.01")),
    _Kind("Water", Utility.WATER, "m3", Decimal("0.001")),
    _Kind("Water", Utility.WATER, "Gallon", Decimal("0.1")),
    _Kind("Gas", Utility.GAS, "m3", Decimal("0.01"), Decimal("0.9627"), Decimal("10.35")),
    _Kind("Gas", Utility.GAS, "Nm3", Decimal("0.1"), Decimal(1), Decimal("11.2")),
    _Kind("Heat", Utility.HEAT, "kWh", Decimal("0.1")),
    _Kind("Air", Utility.AIR, "Sm3", Decimal("0.05")),
    _Kind("Electricity", Utility.ELECTRICITY, "kWh", Decimal("0.001")),
)

_JOBS = (
    ("Every 5 minutes, 1-minute data", 5, 1),
    ("Every 15 minutes, 5-minute data", 15, 5),
    ("Hourly, 15-minute data", 60, 15),
    ("Daily, hourly data", 1440, 60),
)

_BACKFILL = "Since the restart, with the minutes before it"
BACKFILL = timedelta(minutes=25)


class Destination(NamedTuple):
    """The demo's HTTPS receiver, as its jobs are told of it."""

    url: str
    ca_pem: str
    signing_secret: str | None = None
    """None: nothing is signed."""

    def settings(self) -> dict[str, Any]:
        """Return what a job says of it in public."""
        return https_settings(self.url, self.ca_pem)

    def secrets(self) -> dict[str, str]:
        """Return what only a job's secrets say of it."""
        return {} if self.signing_secret is None else {SIGNING_SECRET: self.signing_secret}


class DemoMeter(NamedTuple):
    """A meter and the device that reports it; `input` None: a bridge, which names the meter."""

    meter_id: int
    device_id: str
    input: int | None


async def seed(pool: Pool, *, meters: int) -> bool:
    """Create the demo organization unless it is there; tell whether it was created."""
    async with transaction(pool) as connection:
        if await connection.fetchval("SELECT count(*) FROM organization WHERE name = $1", ORGANIZATION):
            return False
    async with catalog_change(pool) as change:
        organization_id = await change.organization(ORGANIZATION)
        site_count = -(-meters // METERS_PER_SITE)
        sites = [_site(number) for number in range(site_count)]
        site_ids = await change.add_sites(organization_id, sites)
        new = [_meter(number, site_ids[number // METERS_PER_SITE]) for number in range(meters)]
        meter_ids = await change.add_meters(organization_id, new)
        await _attach(change, organization_id, meter_ids)
    return True


def _site(number: int) -> NewSite:
    name, zone = _SITES[number % len(_SITES)]
    return NewSite(name if number < len(_SITES) else f"{name} {number // len(_SITES) + 1}", zone)


def _meter(number: int, site_id: int) -> NewMeter:
    kind = _KINDS[number % len(_KINDS)]
    return NewMeter(
        name=f"{kind.utility.value.capitalize()} {number + 1:04}",
        meter_type=kind.meter_type,
        utility=kind.utility,
        unit=kind.unit,
        units_per_pulse=kind.units_per_pulse,
        site_id=site_id,
        normalization_factor=kind.normalization_factor,
        calorific_value=kind.calorific_value,
        serial_number=f"MP{number + 1:07}",
    )


async def _attach(change: CatalogChange, organization_id: int, meter_ids: Sequence[int]) -> None:
    """Three meters of four hang on loggers, the others on bridges."""
    on_loggers = meter_ids[: len(meter_ids) * 3 // 4]
    on_bridges = meter_ids[len(on_loggers) :]
    inputs = [
        InputLink(f"LG-{place // INPUTS_PER_LOGGER + 1:06}", place % INPUTS_PER_LOGGER + 1, meter_id)
        for place, meter_id in enumerate(on_loggers)
    ]
    links = [
        BridgeLink(f"BR-{place // METERS_PER_BRIDGE + 1:06}", meter_id) for place, meter_id in enumerate(on_bridges)
    ]
    loggers = sorted({link.device_id for link in inputs})
    bridges = sorted({link.device_id for link in links})
    devices = [NewDevice(name, "logger") for name in loggers] + [NewDevice(name, "bridge") for name in bridges]
    await change.add_devices(organization_id, devices)
    await change.attach_inputs(inputs)
    await change.attach_bridges(links)


async def has_jobs(pool: Pool) -> bool:
    """Tell whether the demo organization has, or ever had, an export job."""
    async with transaction(pool) as connection:
        found: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM export_job JOIN organization USING (organization_id) WHERE name = $1)",
            ORGANIZATION,
        )
    return found


async def seed_jobs(pool: Pool, to: Destination, vault: Vault, *, starts_at: datetime, now: datetime) -> None:
    """Create the demo's export jobs, which begin with the windows at `starts_at`."""
    async with transaction(pool) as connection:
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
    for name, frequency_minutes, resolution_minutes in _JOBS:
        settings = JobSettings(name, frequency_minutes, resolution_minutes, None, "https", to.settings(), manifest=True)
        await create_job(pool, NewJob(organization_id, settings, starts_at, to.secrets()), now, vault)


async def backfill_recent(pool: Pool, to: Destination, vault: Vault, *, now: datetime) -> None:
    """Have the last minutes delivered once more, by a job of its own, so that a restart shows deliveries at once.

    The other jobs go on where they stopped: their next slot may be minutes away. The job of an earlier start is ended.
    """
    async with transaction(pool) as connection:
        clock = await platform_clock(connection)
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        jobs = await list_jobs(connection, organization_id)
    for job in jobs:
        if job.settings.name == _BACKFILL:
            await delete_job(pool, organization_id, job.job_id, now)
    if clock is not None:
        settings = JobSettings(_BACKFILL, 5, 5, None, "https", to.settings(), manifest=True)
        await create_job(pool, NewJob(organization_id, settings, clock - BACKFILL, to.secrets()), now, vault)


async def move_jobs(pool: Pool, to: Destination, vault: Vault, *, now: datetime) -> None:
    """Point the demo's jobs at its receiver, whose port or certificate may have changed since the last start."""
    async with transaction(pool) as connection:
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        jobs = await list_jobs(connection, organization_id)
    names = {name for name, _frequency, _resolution in _JOBS}
    for job in jobs:
        if job.settings.name in names:
            await move_job(pool, job, to, vault, now=now)


async def move_job(pool: Pool, job: Job, to: Destination, vault: Vault, *, now: datetime) -> None:
    """Point a job at the demo's receiver."""
    # Whatever else somebody has set since, stays.
    moved = {**job.settings.transport_settings, **to.settings()}
    settings = replace(job.settings, transport_settings=moved)
    # A second secret would only say the same, or take the place of somebody's own.
    secrets = {} if signing_secrets(moved.get(SEALED, {})) else to.secrets()
    await edit_job(pool, job.organization_id, job.job_id, settings, now, secrets=secrets, vault=vault)


async def demo_meters(pool: Pool) -> list[DemoMeter]:
    """Return the meters that the simulated fleet reads."""
    async with transaction(pool) as connection:
        rows = await connection.fetch(
            """
            SELECT meter_id, device_id, input FROM input_attachment JOIN meter USING (meter_id)
            JOIN organization USING (organization_id) WHERE organization.name = $1
            UNION ALL
            SELECT meter_id, device_id, NULL FROM bridge_attachment JOIN meter USING (meter_id)
            JOIN organization USING (organization_id) WHERE organization.name = $1 AND device_id LIKE 'BR-______'
            ORDER BY meter_id
            """,
            ORGANIZATION,
        )
    return [DemoMeter(*row) for row in rows]
