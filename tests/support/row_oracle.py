"""The rows of an export one by one, by their definition: what rendering by the thousand must come to."""

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from services.core.blocks import Block, MeterNames
from services.core.conversion import hourly_rate, two_decimals
from services.core.csv_records import csv_cell
from services.core.parts import PartFormat
from services.core.records import NOT_APPLICABLE, JsonRecord, MeasurementRow
from services.core.times import iso_seconds

FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_line(row: MeasurementRow, *, defuse: bool) -> bytes:
    """Return the row as a line of CSV without its end."""

    def text(value: str) -> str:
        return csv_cell("'" + value if defuse and value.startswith(FORMULA_BEGINNINGS) else value)

    cells = [
        str(row.meter_id),
        text(row.meter_type),
        text(row.meter_name),
        text(row.meter_unit),
        iso_seconds(row.measured_at),
        str(row.resolution_minutes),
        str(row.site_id),
        text(row.site_name),
        values(row),
    ]
    return ",".join(cells).encode()


def json_line(row: MeasurementRow) -> bytes:
    """Return the row as one element of the body's `measurements`."""
    names = (row.meter_id, row.meter_type, row.meter_name, row.meter_unit, iso_seconds(row.measured_at))
    record = JsonRecord(*names, row.resolution_minutes, row.site_id, row.site_name, *values(row).split(","))
    return msgspec.json.encode(record)


def values(row: MeasurementRow) -> str:
    """Return power, energy, flow and volume, separated by commas."""
    minutes, utility = row.resolution_minutes, row.utility
    return f"{_pair(row.energy_wh, minutes, utility.has_energy)},{_pair(row.volume, minutes, utility.has_volume)}"


def _pair(amount: Decimal | None, minutes: int, applies: bool) -> str:
    if amount is None or not applies:
        return f"{NOT_APPLICABLE},{NOT_APPLICABLE}"
    return f"{two_decimals(hourly_rate(amount, minutes))},{two_decimals(amount)}"


def block_of(part_format: PartFormat, rows: Sequence[MeasurementRow]) -> Block:
    """Return the rows as a block, each as a window of its own."""
    block = Block(part_format.layout, part_format.joint)
    for row in rows:
        names = MeterNames(row.meter_id, row.meter_type, row.meter_name, row.meter_unit, row.site_id, row.site_name)
        before, behind = part_format.layout.around(names, row.resolution_minutes)
        block.add(iso_seconds(row.measured_at).encode(), [before], [behind], [values(row).encode()])
    return block


def rendered(part_format: PartFormat, rows: Sequence[MeasurementRow]) -> bytes:
    """Return one part of all the rows, as blocks make it."""
    block = block_of(part_format, rows)
    return part_format.assemble_block(block, 0, block.row_count)
