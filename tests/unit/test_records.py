"""The export's record, byte for byte."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.conversion import Conversion, Utility, convert, utility_of
from services.core.parts import HTTPS_JSON
from services.core.records import JSON_LAYOUT, MeasurementRow
from services.core.row_blocks import render_rows

FIELDS = [
    "METER_ID", "METER_TYPE", "METER_NAME", "METER_UNIT", "MEASUREMENT_TIME(UTC)", "RESOLUTION(min)", "SITE_ID",
    "SITE_NAME", "POWER(W)", "ENERGY(Wh)", "FLOW", "VOLUME",
]  # fmt: skip
TIME = datetime(2026, 5, 4, 10, 15, tzinfo=UTC)


def row(
    meter_type: str = "Electricity",
    *,
    unit: str = "kWh",
    energy_wh: str | None = None,
    volume: str | None = None,
    minutes: int = 15,
    name: str = "Hall feeder 3",
    measured_at: datetime = TIME,
) -> MeasurementRow:
    return MeasurementRow(
        4101,
        meter_type,
        utility_of(meter_type),
        name,
        unit,
        measured_at,
        minutes,
        501,
        "North depot",
        None if energy_wh is None else Decimal(energy_wh),
        None if volume is None else Decimal(volume),
    )


def values(of: MeasurementRow) -> tuple[str, str, str, str]:
    record = json.loads(render_rows(JSON_LAYOUT, [of])[0])
    return record["POWER(W)"], record["ENERGY(Wh)"], record["FLOW"], record["VOLUME"]


def test_the_body_byte_for_byte() -> None:
    body = HTTPS_JSON.assemble(render_rows(JSON_LAYOUT, [row(energy_wh="12062.5")]))
    assert body == (
        b'{"measurements":[{"METER_ID":4101,"METER_TYPE":"Electricity","METER_NAME":"Hall feeder 3","METER_UNIT":"kWh",'
        b'"MEASUREMENT_TIME(UTC)":"2026-05-04T10:15:00Z","RESOLUTION(min)":15,"SITE_ID":501,"SITE_NAME":"North depot",'
        b'"POWER(W)":"48250.00","ENERGY(Wh)":"12062.50","FLOW":"N/A","VOLUME":"N/A"}]}'
    )


def test_the_twelve_fields_in_their_order_with_their_types() -> None:
    record = json.loads(render_rows(JSON_LAYOUT, [row(energy_wh="1")])[0])
    assert list(record) == FIELDS
    assert [type(record[field]) for field in FIELDS] == [int, str, str, str, str, int, int, str, str, str, str, str]


@pytest.mark.parametrize(
    ("meter_type", "has_energy", "has_volume"),
    [
        ("Electricity", True, False),
        ("Heat", True, False),
        ("Gas", True, True),
        ("Water", False, True),
        ("Air", False, True),
        ("Electric Pulse Meter", True, False),
        ("Electricity Pulse Meter", True, False),
    ],
)
def test_which_values_a_meter_type_has(meter_type: str, has_energy: bool, has_volume: bool) -> None:
    found = values(row(meter_type, energy_wh="10", volume="3"))
    expected = ("40.00", "10.00") if has_energy else ("N/A", "N/A")
    assert found == expected + (("12.00", "3.00") if has_volume else ("N/A", "N/A"))


def test_a_legacy_type_passes_through_as_it_is() -> None:
    assert json.loads(render_rows(JSON_LAYOUT, [row("Electric Pulse Meter", energy_wh="1")])[0])["METER_TYPE"] == (
        "Electric Pulse Meter"
    )


def test_gas_without_a_calorific_value_has_no_energy() -> None:
    assert values(row("Gas", unit="m3", volume="2.5")) == ("N/A", "N/A", "10.00", "2.50")


@pytest.mark.parametrize(
    ("energy_wh", "shown"),
    [("0.004999", "0.00"), ("0.005", "0.01"), ("2.675", "2.68"), ("0", "0.00"), ("1E+3", "1000.00"), ("1.125", "1.13")],
)
def test_values_are_rounded_half_up_and_only_once(energy_wh: str, shown: str) -> None:
    assert values(row(energy_wh=energy_wh, minutes=60))[1] == shown


def test_power_is_the_average_of_the_interval_and_not_made_from_the_rounded_energy() -> None:
    # 0.004 Wh in a minute are 0.24 W, though the energy shows as 0.00
    assert values(row(energy_wh="0.004", minutes=1))[:2] == ("0.24", "0.00")


def test_each_utility_from_pulses_to_the_record() -> None:
    electricity = convert(3, Conversion(Utility.ELECTRICITY, Decimal("0.5")))
    assert values(row(energy_wh=str(electricity.energy_wh))) == ("6000.00", "1500.00", "N/A", "N/A")
    gas = convert(7, Conversion(Utility.GAS, Decimal("0.1"), Decimal("0.95"), Decimal("11.2")))
    assert values(row("Gas", unit="m3", energy_wh=str(gas.energy_wh), volume=str(gas.volume))) == (
        "29792.00", "7448.00", "2.66", "0.67",
    )  # fmt: skip


def test_time_is_utc_to_the_second_whatever_zone_it_comes_in() -> None:
    elsewhere = TIME.astimezone(timezone(timedelta(hours=-5)))
    assert b'"2026-05-04T10:15:00Z"' in render_rows(JSON_LAYOUT, [row(energy_wh="1", measured_at=elsewhere)])[0]


@given(name=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_name_survives(name: str) -> None:
    assert json.loads(render_rows(JSON_LAYOUT, [row(energy_wh="1", name=name)])[0])["METER_NAME"] == name


@given(
    energies=st.lists(st.decimals(0, 10**9, places=5), max_size=20),
    steps=st.lists(st.integers(0, 2), min_size=20, max_size=20),
)
def test_rows_render_alone_as_they_do_together(energies: list[Decimal], steps: list[int]) -> None:
    rows = [
        row(energy_wh=str(energy), measured_at=TIME + timedelta(minutes=15 * sum(steps[:n])))
        for n, energy in enumerate(energies)
    ]
    assert render_rows(JSON_LAYOUT, rows) == [render_rows(JSON_LAYOUT, [one])[0] for one in rows]
