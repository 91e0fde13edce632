"""Changes of what the catalog holds already: new rows with a higher revision, within a `CatalogChange`."""

from datetime import datetime

from services.api.catalog_store import CatalogChange, NewMeter


async def create_organization(change: CatalogChange, name: str) -> int | None:
    """Create an organization and return its id; None where the name is taken."""
    created: int | None = await change.connection.fetchval(
        "INSERT INTO organization (name, revision) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING "
        "RETURNING organization_id",
        *(name, change.revision),
    )
    change.has_changed = change.has_changed or created is not None
    return created


async def create_account(change: CatalogChange, organization_id: int, name: str) -> int | None:
    """Create an account of a customer and return its id; None where the name is taken."""
    created: int | None = await change.connection.fetchval(
        "INSERT INTO account (organization_id, name, revision) VALUES ($1, $2, $3) "
        "ON CONFLICT (organization_id, name) DO NOTHING RETURNING account_id",
        *(organization_id, name, change.revision),
    )
    change.has_changed = change.has_changed or created is not None
    return created


async def give_site_to_account(change: CatalogChange, site_id: int, account_id: int) -> None:
    """Say to which account a site that this change created belongs."""
    await change.connection.execute(
        "UPDATE site SET account_id = $2 WHERE site_id = $1 AND revision = $3", site_id, account_id, change.revision
    )


async def describe_site(
    change: CatalogChange, site_id: int, valid_from: datetime | None, name: str, time_zone: str
) -> None:
    """Give a site another name and zone from an instant on (None: since ever, until the next description)."""
    change.has_changed = True
    await change.connection.execute(
        "INSERT INTO site_description (site_id, valid_from, revision, name, time_zone) "
        "VALUES ($1, coalesce($2, '-infinity'::timestamptz), $3, $4, $5)",
        *(site_id, valid_from, change.revision, name, time_zone),
    )


async def configure_meter(change: CatalogChange, meter_id: int, valid_from: datetime | None, to: NewMeter) -> None:
    """Give a meter another configuration from an instant on (None: since ever, until the next one)."""
    change.has_changed = True
    await change.connection.execute(
        """
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                         normalization_factor, calorific_value, register_modulus, cadence_minutes)
        VALUES ($1, coalesce($2, '-infinity'::timestamptz), $3, $4, $5, $6, $7, $8, $9, $10, $11)
        """,
        *(meter_id, valid_from, change.revision, to.name, to.site_id, to.unit, to.units_per_pulse),
        *(to.normalization_factor, to.calorific_value, to.register_modulus, to.cadence_minutes),
    )
