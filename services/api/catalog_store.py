"""The only SQL that writes the registry: organizations, sites, devices, meters and what is attached to what.

Rows are effective-dated and never changed. A `CatalogChange` is one transaction: it takes the next catalog revision
(the row lock lets one change run at a time, so what it reads stays true until its end), stamps every row with it, and
rings `meterpost_catalog` when it commits. Everything is set-based: tens of thousands of meters take a second or two.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

import asyncpg

from services.core.conversion import Utility
from services.platform.errors import UserError
from services.platform.postgres import Connection, Pool, transaction

CHANNEL = "meterpost_catalog"
"""NOTIFY channel; the payload is the revision that was committed."""


class NewSite(NamedTuple):
    """A site to be created; the zone is an IANA name."""

    name: str
    time_zone: str = "UTC"


class NewDevice(NamedTuple):
    """A device to be created; kind: logger or bridge."""

    device_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class NewMeter:
    """A meter to be created, with the configuration that holds from the beginning of time."""

    name: str
    meter_type: str
    utility: Utility
    unit: str
    units_per_pulse: Decimal
    site_id: int
    normalization_factor: Decimal = Decimal(1)
    calorific_value: Decimal | None = None
    register_modulus: int | None = None
    cadence_minutes: int = 1
    serial_number: str | None = None
    meter_id: int | None = None
    """None: the database gives the next one."""


class InputLink(NamedTuple):
    """From `valid_from` on (None: always) the logger's input counts for the meter (None: for none)."""

    device_id: str
    input: int
    meter_id: int | None
    valid_from: datetime | None = None


class BridgeLink(NamedTuple):
    """From `valid_from` on (None: always) the bridge may, or may no longer, report the meter."""

    device_id: str
    meter_id: int
    valid_from: datetime | None = None
    attached: bool = True


class _NothingChanged(Exception):  # noqa: N818 - how a transaction without a row is rolled back
    """Ends the transaction of a change that wrote nothing, so that it leaves no revision behind."""


@asynccontextmanager
async def catalog_change(pool: Pool | Connection) -> AsyncIterator["CatalogChange"]:
    """Run one change of the catalog: all of it is committed at the end, or nothing where the body raises.

    A change that adds no row takes no revision. Raises UserError where a row breaks a rule of the catalog, Unavailable
    where PostgreSQL is away.
    """
    try:
        async with transaction(pool) as connection:
            revision = await connection.fetchval(
                "UPDATE catalog_revision SET revision = revision + 1 RETURNING revision"
            )
            change = CatalogChange(connection, revision)
            yield change
            await change.finish()
    except _NothingChanged:
        return
    except asyncpg.IntegrityConstraintViolationError as error:
        # The caller checks what a person can get wrong; this is the last line of defence.
        raise UserError(f"the catalog refuses this: {error.detail or error}") from error


class CatalogChange:
    """What can be added in one catalog transaction. The caller ends it by leaving `catalog_change`."""

    def __init__(self, connection: Connection, revision: int) -> None:
        self.connection = connection
        self.revision = revision
        self.has_changed = False

    async def finish(self) -> None:
        """Ring for the new revision; called by `catalog_change`. Raises where there is nothing to commit."""
        if not self.has_changed:
            raise _NothingChanged
        await self.connection.execute("SELECT pg_notify($1, $2)", CHANNEL, str(self.revision))

    async def organization(self, name: str) -> int:
        """Return the id of the organization of that name, creating it where there is none."""
        found: int | None = await self.connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", name
        )
        if found is not None:
            return found
        self.has_changed = True
        created: int = await self.connection.fetchval(
            "INSERT INTO organization (name, revision) VALUES ($1, $2) RETURNING organization_id", name, self.revision
        )
        return created

    async def add_sites(self, organization_id: int, sites: Sequence[NewSite]) -> list[int]:
        """Create sites; return their ids in the order given."""
        ids = await self._next_ids("site", "site_id", len(sites))
        await self._copy(
            "site",
            ("site_id", "organization_id", "revision"),
            ((site_id, organization_id, self.revision) for site_id in ids),
        )
        await self.connection.execute(
            """
            INSERT INTO site_description (site_id, valid_from, revision, name, time_zone)
            SELECT site_id, '-infinity', $4, name, time_zone
            FROM unnest($1::int[], $2::text[], $3::text[]) AS new (site_id, name, time_zone)
            """,
            ids,
            [site.name for site in sites],
            [site.time_zone for site in sites],
            self.revision,
        )
        return ids

    async def add_devices(self, organization_id: int, devices: Sequence[NewDevice]) -> None:
        """Create devices. Their ids are unique on the whole platform."""
        await self._copy(
            "device",
            ("device_id", "organization_id", "kind", "revision"),
            ((device.device_id, organization_id, device.kind, self.revision) for device in devices),
        )

    async def add_meters(self, organization_id: int, meters: Sequence[NewMeter]) -> list[int]:
        """Create meters with their first configuration; return their ids in the order given."""
        await self._skip_ids([meter.meter_id for meter in meters if meter.meter_id is not None])
        given = iter(await self._next_ids("meter", "meter_id", sum(meter.meter_id is None for meter in meters)))
        ids = [next(given) if meter.meter_id is None else meter.meter_id for meter in meters]
        await self._copy(
            "meter",
            ("meter_id", "organization_id", "meter_type", "utility", "serial_number", "revision"),
            (
                (meter_id, organization_id, new.meter_type, new.utility.value, new.serial_number, self.revision)
                for meter_id, new in zip(ids, meters, strict=True)
            ),
        )
        await self.connection.execute(
            """
            INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                             normalization_factor, calorific_value, register_modulus, cadence_minutes)
            SELECT meter_id, '-infinity', $10, name, site_id, unit, units_per_pulse,
                   normalization_factor, calorific_value, register_modulus, cadence_minutes
            FROM unnest($1::int[], $2::text[], $3::int[], $4::text[], $5::numeric[], $6::numeric[], $7::numeric[],
                        $8::bigint[], $9::smallint[])
                 AS new (meter_id, name, site_id, unit, units_per_pulse, normalization_factor, calorific_value,
                         register_modulus, cadence_minutes)
            """,
            ids,
            [meter.name for meter in meters],
            [meter.site_id for meter in meters],
            [meter.unit for meter in meters],
            [meter.units_per_pulse for meter in meters],
            [meter.normalization_factor for meter in meters],
            [meter.calorific_value for meter in meters],
            [meter.register_modulus for meter in meters],
            [meter.cadence_minutes for meter in meters],
            self.revision,
        )
        return ids

    async def attach_inputs(self, links: Sequence[InputLink]) -> None:
        """Record which meters the inputs of loggers count for."""
        self.has_changed = self.has_changed or bool(links)
        await self.connection.execute(
            """
            INSERT INTO input_attachment (device_id, input, valid_from, revision, meter_id)
            SELECT device_id, input, COALESCE(valid_from, '-infinity'), $5, meter_id
            FROM unnest($1::text[], $2::smallint[], $3::timestamptz[], $4::int[])
                 AS new (device_id, input, valid_from, meter_id)
            """,
            [link.device_id for link in links],
            [link.input for link in links],
            [link.valid_from for link in links],
            [link.meter_id for link in links],
            self.revision,
        )

    async def attach_bridges(self, links: Sequence[BridgeLink]) -> None:
        """Record which meters the bridges may report."""
        self.has_changed = self.has_changed or bool(links)
        await self.connection.execute(
            """
            INSERT INTO bridge_attachment (device_id, meter_id, valid_from, revision, attached)
            SELECT device_id, meter_id, COALESCE(valid_from, '-infinity'), $5, attached
            FROM unnest($1::text[], $2::int[], $3::timestamptz[], $4::bool[])
                 AS new (device_id, meter_id, valid_from, attached)
            """,
            [link.device_id for link in links],
            [link.meter_id for link in links],
            [link.valid_from for link in links],
            [link.attached for link in links],
            self.revision,
        )

    async def _copy(self, table: str, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
        records = list(rows)
        if records:
            self.has_changed = True
            await self.connection.copy_records_to_table(table, columns=list(columns), records=records)

    async def _next_ids(self, table: str, column: str, count: int) -> list[int]:
        rows = await self.connection.fetch(
            "SELECT nextval(pg_get_serial_sequence($1, $2))::int AS id FROM generate_series(1, $3)",
            table,
            column,
            count,
        )
        return [row["id"] for row in rows]

    async def _skip_ids(self, taken: list[int]) -> None:
        """Move the sequence past ids that a person chose, so that it never gives one of them out again."""
        if taken:
            await self.connection.execute(
                """
                SELECT setval(pg_get_serial_sequence('meter', 'meter_id'),
                              GREATEST($1, nextval(pg_get_serial_sequence('meter', 'meter_id'))))
                """,
                max(taken),
            )
