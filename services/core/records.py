"""The twelve fields of a Meters Measurements record as JSON, byte for byte as customers' receivers expect them.

Source: the export's field reference. A value that the utility does not have is the literal `N/A`; the four values are
strings with two decimals. `csv_records` has the same as CSV.
"""

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

import msgspec

from services.core.blocks import Layout, MeterNames
from services.core.conversion import Utility

NOT_APPLICABLE = "N/A"


class MeasurementRow(NamedTuple):
    """One meter's closed window with the names in force, exact and unrounded."""

    meter_id: int
    meter_type: str
    utility: Utility
    meter_name: str
    meter_unit: str
    measured_at: datetime
    resolution_minutes: int
    site_id: int
    site_name: str
    energy_wh: Decimal | None
    volume: Decimal | None


class JsonRecord(msgspec.Struct, frozen=True, gc=False):
    """The record as JSON; keys and their order are the source document's."""

    meter_id: int = msgspec.field(name="METER_ID")
    meter_type: str = msgspec.field(name="METER_TYPE")
    meter_name: str = msgspec.field(name="METER_NAME")
    meter_unit: str = msgspec.field(name="METER_UNIT")
    measurement_time: str = msgspec.field(name="MEASUREMENT_TIME(UTC)")
    resolution: int = msgspec.field(name="RESOLUTION(min)")
    site_id: int = msgspec.field(name="SITE_ID")
    site_name: str = msgspec.field(name="SITE_NAME")
    power: str = msgspec.field(name="POWER(W)")
    energy: str = msgspec.field(name="ENERGY(Wh)")
    flow: str = msgspec.field(name="FLOW")
    volume: str = msgspec.field(name="VOLUME")


JSON_HEAD = b'{"measurements":['
JSON_TAIL = b"]}"


def _json_around(names: MeterNames, resolution_minutes: int) -> tuple[bytes, bytes]:
    encode = msgspec.json.Encoder().encode
    before = b'{"METER_ID":%d,"METER_TYPE":%b,"METER_NAME":%b,"METER_UNIT":%b,"MEASUREMENT_TIME(UTC)":"' % (
        names.meter_id,
        encode(names.meter_type),
        encode(names.meter_name),
        encode(names.meter_unit),
    )
    site_name = encode(names.site_name)
    behind = b'","RESOLUTION(min)":%d,"SITE_ID":%d,"SITE_NAME":%b,"POWER(W)":"' % (
        resolution_minutes,
        names.site_id,
        site_name,
    )
    return before, behind


JSON_LAYOUT = Layout(_json_around, (b'","ENERGY(Wh)":"', b'","FLOW":"', b'","VOLUME":"'), b'"}')
"""Writes what `JsonRecord` encodes to, by the thousand."""
