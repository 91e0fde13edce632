"""What a catalog says: sites, devices, inputs and meters, each record with its key, in the order of the keys.

Contract: schemas/http/catalog.v1.schema.json for JSON, `CSV_HEADER` of services.core.catalog_format for CSV.
"""

from datetime import datetime
from typing import NamedTuple

import msgspec

from services.core.times import iso_seconds

CATALOG = "catalog"
"""The data of a job that exports the catalog."""
FORMAT_VERSION = 1

SITE, DEVICE, INPUT, METER = 1, 2, 3, 4
KINDS = {SITE: "site", DEVICE: "device", INPUT: "input", METER: "meter"}


class CatalogKey(NamedTuple):
    """Where a record stands: sites, devices, inputs, meters; in each by id, device ids compared as UTF-8."""

    kind: int
    device_id: str
    """Of devices and inputs."""
    number: int
    """The id of a site or meter, or see `input_key`."""

    def __str__(self) -> str:
        """Return the key as text, see `parse_key`."""
        return f"{self.kind}:{self.number}:{self.device_id}"

    @property
    def following(self) -> "CatalogKey":
        """The smallest key behind this one."""
        return self._replace(number=self.number + 1)

    def is_before(self, other: "CatalogKey") -> bool:
        """Tell whether this record comes before the other."""
        mine = (self.kind, self.device_id.encode(), self.number)
        return mine < (other.kind, other.device_id.encode(), other.number)


BEGINNING = CatalogKey(SITE, "", 0)
_BEHIND_INPUTS = 32_768


def input_key(device_id: str, input_number: int | None, meter_id: int) -> CatalogKey:
    """Return the key of an input, or, by the meter, of what a bridge reports: behind all numbers of inputs."""
    return CatalogKey(INPUT, device_id, _BEHIND_INPUTS + meter_id if input_number is None else input_number)


def parse_key(text: str) -> CatalogKey:
    """Return the key that `str` made this of."""
    kind, number, device_id = text.split(":", 2)
    return CatalogKey(int(kind), device_id, int(number))


class CatalogRecord(NamedTuple):
    """A record as the function `catalog_records` of the database returns it; None where the kind does not have it."""

    kind: int
    number: int
    key_text: str
    name: str | None
    site_id: int | None
    site_name: str | None
    time_zone: str | None
    device_id: str | None
    device_kind: str | None
    input: int | None
    meter_id: int | None
    meter_type: str | None
    unit: str | None
    units_per_pulse: str | None
    normalization_factor: str | None
    calorific_value: str | None
    register_modulus: int | None
    cadence_minutes: int | None
    serial_number: str | None
    valid_from: datetime | None
    """From when on it is as it says; None: since ever."""

    @property
    def key(self) -> CatalogKey:
        """Where it stands."""
        return CatalogKey(self.kind, self.key_text, self.number)


class CatalogSite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site."""

    id: int
    name: str
    time_zone: str
    valid_from: str | None


class CatalogDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A logger or a bridge."""

    id: str
    kind: str


class CatalogInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What hangs on a device. `input` None: a bridge, which names the meter itself."""

    device_id: str
    input: int | None
    meter_id: int
    valid_from: str | None


class CatalogMeter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A meter as it is configured; factors are exact decimals as text."""

    id: int
    name: str
    type: str
    unit: str
    site_id: int
    units_per_pulse: str
    normalization_factor: str
    calorific_value: str | None
    register_modulus: int | None
    cadence_minutes: int
    serial_number: str | None
    valid_from: str | None


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a part over HTTPS; of what does not fit into it, the parts around it have the rest."""

    format_version: int
    catalog_time: str
    sites: list[CatalogSite]
    devices: list[CatalogDevice]
    inputs: list[CatalogInput]
    meters: list[CatalogMeter]


Entry = CatalogSite | CatalogDevice | CatalogInput | CatalogMeter
_ENTRIES: dict[int, tuple[type[Entry], tuple[str, ...]]] = {
    SITE: (CatalogSite, ("site_id", "name", "time_zone", "valid_from")),
    DEVICE: (CatalogDevice, ("device_id", "device_kind")),
    INPUT: (CatalogInput, ("device_id", "input", "meter_id", "valid_from")),
    METER: (
        CatalogMeter,
        (
            *("meter_id", "name", "meter_type", "unit", "site_id", "units_per_pulse", "normalization_factor"),
            *("calorific_value", "register_modulus", "cadence_minutes", "serial_number", "valid_from"),
        ),
    ),
}


def entry(record: CatalogRecord) -> Entry:
    """Return the record as it stands in JSON."""
    made, fields = _ENTRIES[record.kind]
    valid_from = None if record.valid_from is None else iso_seconds(record.valid_from)
    plain = record._asdict() | {"valid_from": valid_from}
    return made(*(plain[field] for field in fields))
