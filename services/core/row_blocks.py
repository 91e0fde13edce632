"""Rows that are at hand as values, written as exports write them; delivery has the database write by the block."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import groupby

from services.core.blocks import Block, Layout, MeterNames
from services.core.conversion import hourly_rate, two_decimals
from services.core.records import NOT_APPLICABLE, MeasurementRow
from services.core.times import iso_seconds


def add_rows(block: Block, layout: Layout, rows: Iterable[MeasurementRow]) -> None:
    """Add rows to a block of this layout."""
    known: dict[tuple[MeterNames, int], tuple[bytes, bytes]] = {}
    for measured_at, together in groupby(rows, key=lambda row: row.measured_at):
        before, behind, values = [], [], []
        for row in together:
            names = MeterNames(row.meter_id, row.meter_type, row.meter_name, row.meter_unit, row.site_id, row.site_name)
            key = names, row.resolution_minutes
            if key not in known:
                known[key] = layout.around(*key)
            around = known[key]
            before.append(around[0])
            behind.append(around[1])
            values.append(_values(row).encode())
        block.add(iso_seconds(measured_at).encode(), before, behind, values)


def render_rows(layout: Layout, rows: Sequence[MeasurementRow]) -> list[bytes]:
    """Return each row as it stands in a part, without what joins it to the next."""
    block = Block(layout, b"")
    add_rows(block, layout, rows)
    return [b"".join(block.pieces[place : place + block.stride]) for place in range(0, len(block.pieces), block.stride)]


def _values(row: MeasurementRow) -> str:
    """Return power, energy, flow and volume, separated by commas."""
    energy = _rate_and_amount(row.energy_wh, row.resolution_minutes, applies=row.utility.has_energy)
    return f"{energy},{_rate_and_amount(row.volume, row.resolution_minutes, applies=row.utility.has_volume)}"


def _rate_and_amount(amount: Decimal | None, resolution_minutes: int, *, applies: bool) -> str:
    if amount is None or not applies:
        return f"{NOT_APPLICABLE},{NOT_APPLICABLE}"
    return f"{two_decimals(hourly_rate(amount, resolution_minutes))},{two_decimals(amount)}"
