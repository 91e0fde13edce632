"""Meters, their configurations over time, and bringing many of them in from a file."""

from decimal import Decimal
from typing import Annotated, Literal

import msgspec

from services.api import registry_queries
from services.api.catalog_edits import configure_meter
from services.api.catalog_store import NewMeter, catalog_change
from services.api.http.call import Call
from services.api.http.decoding import Amount, Id, Instant, Text, plain
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.known import KnownQuery, ValidFrom, as_known
from services.api.http.paging import Cursor, Limit, link, page, read_cursor
from services.api.http.problems import invalid, not_found
from services.api.http.routes.measurements import SiteIds
from services.api.http.routes.sites import SINCE_EVER, from_when
from services.api.registry_queries import AsKnown, Meter, MeterFilter
from services.core.conversion import Utility, utility_of

Cadence = Literal[1, 5, 15, 30, 60]
MeterType = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=60,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Electricity, Water, Gas, Heat, Air, or a legacy type that begins with Electric.",
    ),
]
Unit = Literal["kWh", "m3", "Nm3", "Sm3", "ft3", "SCF", "Gallon"]
Modulus = Annotated[int, msgspec.Meta(ge=2, le=10**15, description="A register counts from 0 to one less than this.")]
Unset = msgspec.UnsetType
_SETTINGS = (
    "name",
    "site_id",
    "unit",
    "units_per_pulse",
    "normalization_factor",
    "calorific_value",
    "register_modulus",
    "cadence_minutes",
)


class MeterShown(msgspec.Struct, frozen=True):
    """A meter as configured from `valid_from` on (null: since ever)."""

    meter_id: int
    name: str
    meter_type: str
    utility: str
    serial_number: str | None
    site_id: int
    unit: str
    units_per_pulse: str
    normalization_factor: str
    calorific_value: str | None
    register_modulus: int | None
    cadence_minutes: int
    valid_from: Instant | None
    catalog_revision: int


class Meters(msgspec.Struct, frozen=True):
    """A page of meters."""

    meters: list[MeterShown]
    next_cursor: str | None


class MeterHistory(msgspec.Struct, frozen=True):
    """Every configuration that a meter ever had; of two for one instant, the higher revision holds."""

    configurations: list[MeterShown]


class MetersQuery(KnownQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which meters."""

    search: Annotated[str, msgspec.Meta(max_length=200, description="Part of name or serial number.")] | None = None
    site_id: SiteIds = msgspec.field(default_factory=list)
    utility: Utility | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class MeterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A meter to be created; its configuration holds since ever."""

    name: Text
    meter_type: MeterType
    site_id: Id
    unit: Unit
    units_per_pulse: Amount
    normalization_factor: Amount = "1"
    calorific_value: Amount | None = None
    register_modulus: Modulus | None = None
    cadence_minutes: Cadence = 1
    serial_number: Text | None = None


class MeterChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to change; what is left out stays. Type and serial number are the meter's for good."""

    name: Text | Unset = msgspec.UNSET
    site_id: Id | Unset = msgspec.UNSET
    unit: Unit | Unset = msgspec.UNSET
    units_per_pulse: Amount | Unset = msgspec.UNSET
    normalization_factor: Amount | Unset = msgspec.UNSET
    calorific_value: Amount | Unset | None = msgspec.UNSET
    register_modulus: Modulus | Unset | None = msgspec.UNSET
    cadence_minutes: Cadence | Unset = msgspec.UNSET
    valid_from: ValidFrom | Unset | None = msgspec.UNSET


async def list_meters(call: Call) -> Answer:
    """List meters by id."""
    query = call.query(MetersQuery)
    known = await as_known(call, query)
    [after] = read_cursor(query, [int]) or [0]
    utility = None if query.utility is None else query.utility.value
    among = None
    if query.search is not None:
        among = await call.means.meter_names.find(call.connection, call.organization_id, query.search, after)
    wanted = MeterFilter(query.search, query.site_id or None, utility, among=among)
    rows = await registry_queries.meters_page(
        call.connection, call.organization_id, known, call.caller.site_ids, after, wanted, query.limit + 1
    )
    found, cursor = page(query, rows, lambda one: [one.meter_id])
    return Answer(Meters([shown(one) for one in found], cursor), headers=link(call, cursor))


async def show_meter(call: Call) -> Answer:
    """Show a meter."""
    known = await as_known(call, call.query(KnownQuery))
    return Answer(shown(await find(call, call.id("meter_id", "meter"), known)))


async def show_history(call: Call) -> Answer:
    """Show how a meter was ever configured, as far as it stood where the caller may look."""
    meter_id = call.id("meter_id", "meter")
    rows = await registry_queries.meter_history(call.connection, call.organization_id, meter_id)
    seen = [shown(one) for one in rows if call.caller.sees_site(one.site_id)]
    if not seen:
        raise not_found(f"meter {meter_id}")
    return Answer(MeterHistory(seen))


async def create_meter(call: Call) -> Answer:
    """Create a meter."""
    new = call.body(MeterBody)
    try:
        utility = utility_of(new.meter_type)
    except ValueError as error:
        raise invalid("meter_type", str(error)) from None
    meter = NewMeter(
        new.name,
        new.meter_type,
        utility,
        new.unit,
        Decimal(new.units_per_pulse),
        new.site_id,
        Decimal(new.normalization_factor),
        None if new.calorific_value is None else Decimal(new.calorific_value),
        new.register_modulus,
        new.cadence_minutes,
        new.serial_number,
    )
    async with catalog_change(call.connection) as change:
        await _check(call, meter, await as_known(call))
        [meter_id] = await change.add_meters(call.organization_id, [meter])
        created = shown(await find(call, meter_id, AsKnown(call.now, change.revision)))
        await call.audit("meter.create", meter_id, None, created)
    return Answer(created, 201, {"Location": f"/v1/meters/{meter_id}"})


async def edit_meter(call: Call) -> Answer:
    """Configure a meter anew from an instant on; windows that were closed before keep what they had."""
    changes, meter_id = call.body(MeterChanges), call.id("meter_id", "meter")
    async with catalog_change(call.connection) as change:
        before = await find(call, meter_id, await as_known(call))
        call.match(shown(before))
        valid_from = from_when(call, changes.valid_from)
        base = await find(call, meter_id, AsKnown(valid_from or SINCE_EVER, change.revision))
        wanted = _changed(base, changes)
        if any(getattr(wanted, name) != getattr(base, name) for name in _SETTINGS):
            await _check(call, wanted, await as_known(call))
            await configure_meter(change, meter_id, valid_from, wanted)
            after = msgspec.structs.replace(
                shown(base),
                **{name: _plain(getattr(wanted, name)) for name in _SETTINGS},
                valid_from=valid_from,
                catalog_revision=change.revision,
            )
            await call.audit("meter.configure", meter_id, shown(base), after)
    return Answer(shown(await find(call, meter_id, await as_known(call))))


async def find(call: Call, meter_id: int, known: AsKnown) -> Meter:
    """Return a meter that the caller may see. Raises Problem where there is none."""
    rows = await registry_queries.meters_page(
        *(call.connection, call.organization_id, known, call.caller.site_ids),
        *(meter_id - 1, MeterFilter(meter_id=meter_id), 1),
    )
    if not rows:
        raise not_found(f"meter {meter_id}")
    return rows[0]


def _changed(base: Meter, changes: MeterChanges) -> NewMeter:
    number = changes.calorific_value
    calorific_value = Decimal(number) if isinstance(number, str) else base.calorific_value
    modulus = changes.register_modulus
    return NewMeter(
        name=base.name if changes.name is msgspec.UNSET else changes.name,
        meter_type=base.meter_type,
        utility=Utility(base.utility),
        unit=base.unit if changes.unit is msgspec.UNSET else changes.unit,
        units_per_pulse=_number(changes.units_per_pulse, base.units_per_pulse),
        site_id=base.site_id if changes.site_id is msgspec.UNSET else changes.site_id,
        normalization_factor=_number(changes.normalization_factor, base.normalization_factor),
        calorific_value=None if number is None else calorific_value,
        register_modulus=base.register_modulus if modulus is msgspec.UNSET else modulus,
        cadence_minutes=base.cadence_minutes if changes.cadence_minutes is msgspec.UNSET else changes.cadence_minutes,
        serial_number=base.serial_number,
    )


def _number(told: str | Unset, before: Decimal) -> Decimal:
    return Decimal(told) if isinstance(told, str) else before


async def _check(call: Call, meter: NewMeter, known: AsKnown) -> None:
    """Raise Problem where a configuration contradicts itself, or names a site that is not there for the caller."""
    if meter.unit not in meter.utility.units:
        allowed = ", ".join(meter.utility.units)
        raise invalid("unit", f"a {meter.utility} meter cannot measure in {meter.unit}; allowed: {allowed}")
    for name in ("units_per_pulse", "normalization_factor", "calorific_value"):
        value = getattr(meter, name)
        if value is not None and value <= 0:
            raise invalid(name, f"{name} is {plain(value)}, but must be above 0")
    if meter.utility is not Utility.GAS:
        if meter.normalization_factor != 1:
            raise invalid("normalization_factor", f"it belongs to gas, not to {meter.meter_type}")
        if meter.calorific_value is not None:
            raise invalid("calorific_value", f"it belongs to gas, not to {meter.meter_type}")
    site = await registry_queries.find_site(call.connection, call.organization_id, known, meter.site_id)
    if site is None or not call.caller.sees_site(meter.site_id):
        raise invalid("site_id", f"the organization has no site {meter.site_id}")


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, Decimal) else value


def shown(one: Meter) -> MeterShown:
    """Return a meter as it is shown."""
    return MeterShown(
        meter_id=one.meter_id,
        name=one.name,
        meter_type=one.meter_type,
        utility=one.utility,
        serial_number=one.serial_number,
        site_id=one.site_id,
        unit=one.unit,
        units_per_pulse=plain(one.units_per_pulse) or "",
        normalization_factor=plain(one.normalization_factor) or "",
        calorific_value=plain(one.calorific_value),
        register_modulus=one.register_modulus,
        cadence_minutes=one.cadence_minutes,
        valid_from=one.valid_from,
        catalog_revision=one.revision,
    )


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/meters", "list_meters", "Meters, as in force and known at some time"),
        *(list_meters, "viewer", Meters),
        query=MetersQuery,
    ),
    Endpoint(
        *("POST", "/v1/meters", "create_meter", "Create a meter"),
        *(create_meter, "admin", MeterShown, 201),
        body=MeterBody,
        body_form="json",
        is_create=True,
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/meters/{meter_id}", "show_meter", "A meter"),
        *(show_meter, "viewer", MeterShown),
        query=KnownQuery,
        has_etag=True,
    ),
    Endpoint(
        *("PATCH", "/v1/meters/{meter_id}", "edit_meter", "Configure a meter anew from some time on"),
        *(edit_meter, "admin", MeterShown),
        body=MeterChanges,
        body_form="json",
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/meters/{meter_id}/configurations", "show_meter_history", "How a meter was ever configured"),
        *(show_history, "viewer", MeterHistory),
    ),
)
