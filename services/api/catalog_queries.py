"""What the catalog says now: organizations, sites, devices and meters with the newest configuration known."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from services.core.catalog_records import CatalogKey, CatalogRecord
from services.platform.postgres import Connection, Pool

AnyConnection = Connection | Pool
# Stands in for -infinity, which asyncpg would hand out as a time without a zone (and takes the year 1 for).
_BEGINNING_OF_TIME = datetime(2, 1, 1, tzinfo=UTC)


class Organization(NamedTuple):
    """A tenant."""

    organization_id: int
    name: str


class Site(NamedTuple):
    """A site as described now."""

    site_id: int
    name: str
    time_zone: str


class Device(NamedTuple):
    """A device, of whatever organization."""

    device_id: str
    organization_id: int
    kind: str


class Meter(NamedTuple):
    """A meter with the configuration in force now."""

    meter_id: int
    name: str
    meter_type: str
    utility: str
    unit: str
    units_per_pulse: Decimal
    normalization_factor: Decimal
    calorific_value: Decimal | None
    register_modulus: int | None
    cadence_minutes: int
    serial_number: str | None
    site_id: int
    site_name: str


class Attachment(NamedTuple):
    """From `valid_from` on the device reports the meter (or, `attached` False, no longer); `input` None: a bridge."""

    device_id: str
    input: int | None
    meter_id: int | None
    valid_from: datetime
    revision: int
    attached: bool


async def organizations(connection: AnyConnection) -> list[Organization]:
    """Return all organizations by name."""
    rows = await connection.fetch("SELECT organization_id, name FROM organization ORDER BY name")
    return [Organization(*row) for row in rows]


async def sites(connection: AnyConnection, organization_id: int) -> list[Site]:
    """Return the organization's sites, by id."""
    rows = await connection.fetch(
        """
        SELECT site.site_id, now_described.name, now_described.time_zone
        FROM site
        CROSS JOIN LATERAL (
            SELECT name, time_zone FROM site_description
            WHERE site_description.site_id = site.site_id AND valid_from <= now()
            ORDER BY valid_from DESC, revision DESC LIMIT 1
        ) AS now_described
        WHERE site.organization_id = $1
        ORDER BY site.site_id
        """,
        organization_id,
    )
    return [Site(*row) for row in rows]


async def devices(connection: AnyConnection, device_ids: Collection[str]) -> list[Device]:
    """Return those of the devices that exist."""
    rows = await connection.fetch(
        "SELECT device_id, organization_id, kind FROM device WHERE device_id = ANY($1::text[])", list(device_ids)
    )
    return [Device(*row) for row in rows]


async def meters(connection: AnyConnection, organization_id: int) -> list[Meter]:
    """Return the organization's meters, by id."""
    rows = await connection.fetch(
        """
        SELECT meter.meter_id, configured.name, meter_type, utility, configured.unit, configured.units_per_pulse,
               configured.normalization_factor, configured.calorific_value, configured.register_modulus,
               configured.cadence_minutes, serial_number, configured.site_id, described.name
        FROM meter
        CROSS JOIN LATERAL (
            SELECT * FROM meter_configuration
            WHERE meter_configuration.meter_id = meter.meter_id AND valid_from <= now()
            ORDER BY valid_from DESC, revision DESC LIMIT 1
        ) AS configured
        CROSS JOIN LATERAL (
            SELECT name FROM site_description
            WHERE site_description.site_id = configured.site_id AND valid_from <= now()
            ORDER BY valid_from DESC, revision DESC LIMIT 1
        ) AS described
        WHERE organization_id = $1
        ORDER BY meter.meter_id
        """,
        organization_id,
    )
    return [Meter(*row) for row in rows]


async def taken_meter_ids(connection: AnyConnection, meter_ids: Collection[int]) -> set[int]:
    """Return those of the ids that belong to a meter, of whatever organization."""
    rows = await connection.fetch("SELECT meter_id FROM meter WHERE meter_id = ANY($1::int[])", list(meter_ids))
    return {row["meter_id"] for row in rows}


async def attachments(
    connection: AnyConnection, *, device_ids: Collection[str] | None = None, organization_id: int | None = None
) -> list[Attachment]:
    """Return every attachment, old ones too, of the devices named or of all devices of an organization."""
    rows = await connection.fetch(
        """
        WITH wanted AS (
            SELECT device_id FROM device
            WHERE ($1::text[] IS NULL OR device_id = ANY($1)) AND ($2::int IS NULL OR organization_id = $2)
        )
        SELECT device_id, input::int, meter_id, GREATEST(valid_from, $3), revision, true
        FROM input_attachment JOIN wanted USING (device_id)
        UNION ALL
        SELECT device_id, NULL, meter_id, GREATEST(valid_from, $3), revision, attached
        FROM bridge_attachment JOIN wanted USING (device_id)
        """,
        None if device_ids is None else list(device_ids),
        organization_id,
        _BEGINNING_OF_TIME,
    )
    return [Attachment(*row) for row in rows]


class CatalogOf(NamedTuple):
    """Whose catalog, in force when, as known at which revision; `site_ids` None: all sites."""

    organization_id: int
    at: datetime
    revision: int
    site_ids: Sequence[int] | None


async def catalog_page(connection: AnyConnection, of: CatalogOf, first: CatalogKey, most: int) -> list[CatalogRecord]:
    """Return at most `most` records of a catalog from a key on, as exports have them; fewer only where it ends."""
    sites = None if of.site_ids is None else list(of.site_ids)
    rows = await connection.fetch(
        "SELECT * FROM catalog_records($1, $2, $3, $4, $5, $6, $7, $8)",
        *(of.organization_id, of.at, of.revision, sites, first.kind, first.number, first.device_id, most),
    )
    return [CatalogRecord(*row) for row in rows]


async def newest_revision(connection: AnyConnection) -> int:
    """Return the newest revision of the catalog."""
    revision: int = await connection.fetchval("SELECT revision FROM catalog_revision")
    return revision


async def platform_clock(connection: AnyConnection) -> datetime | None:
    """Return how far the platform's clock, which is the arrival of readings, has come; None before the first."""
    clock: datetime | None = await connection.fetchval("SELECT max(watermark) FROM ingest_progress")
    return clock
