"""From pulses to energy and volume: cases computed by hand, per utility and unit."""

import itertools
from decimal import Decimal, Inexact
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.conversion import (
    ENERGY_UNITS,
    VOLUME_UNITS,
    Conversion,
    Utility,
    convert,
    hourly_rate,
    two_decimals,
    utility_of,
)
from tests.support.conversion_cases import CASES, Case

D = Decimal


# The table of the export's field reference: meter types and the units that they measure in.
UNITS = {
    "Electricity": {"kWh"},
    "Heat": {"kWh"},
    "Gas": {"m3", "Nm3", "Sm3", "ft3", "SCF", "Gallon"},
    "Water": {"m3", "Nm3", "Sm3", "ft3", "SCF", "Gallon"},
    "Air": {"m3", "Nm3", "Sm3", "ft3", "SCF", "Gallon"},
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.meter_type} in {case.unit}")
def test_pulses_are_converted_to_what_was_computed_by_hand(case: Case) -> None:
    assert convert(case.pulses, case.conversion) == case.expected


def test_the_table_has_each_type_in_each_unit_and_gas_in_all_its_combinations() -> None:
    combinations = {
        (case.meter_type, case.unit, case.normalization_factor != "1", case.calorific_value is not None)
        for case in CASES
    }
    for meter_type, units in UNITS.items():
        assert set(utility_of(meter_type).units) == units
        for unit in units:
            ways = itertools.product([False, True], repeat=2) if meter_type == "Gas" else [(False, False)]
            assert combinations >= {(meter_type, unit, *way) for way in ways}


@pytest.mark.parametrize(
    ("utility", "has_energy", "has_volume", "units"),
    [
        (Utility.ELECTRICITY, True, False, ENERGY_UNITS),
        (Utility.HEAT, True, False, ENERGY_UNITS),
        (Utility.GAS, True, True, VOLUME_UNITS),
        (Utility.WATER, False, True, VOLUME_UNITS),
        (Utility.AIR, False, True, VOLUME_UNITS),
    ],
)
def test_which_utility_has_which_values(
    utility: Utility, has_energy: bool, has_volume: bool, units: tuple[str, ...]
) -> None:
    assert (utility.has_energy, utility.has_volume, utility.units) == (has_energy, has_volume, units)
    quantity = convert(3, Conversion(utility, D("0.5"), D(1), D(10)))
    assert (quantity.energy_wh is not None, quantity.volume is not None) == (has_energy, has_volume)


@pytest.mark.parametrize(
    ("meter_type", "utility"),
    [
        ("Electricity", Utility.ELECTRICITY),
        ("Electric Pulse Meter", Utility.ELECTRICITY),
        (" electric ", Utility.ELECTRICITY),
        ("Water", Utility.WATER),
        ("GAS", Utility.GAS),
        ("Heat", Utility.HEAT),
        ("Air", Utility.AIR),
    ],
)
def test_meter_types_and_their_legacy_names(meter_type: str, utility: Utility) -> None:
    assert utility_of(meter_type) is utility


def test_an_unknown_meter_type_is_named() -> None:
    with pytest.raises(ValueError, match="unknown meter type 'Steam'; allowed: Electricity"):
        utility_of("Steam")


@pytest.mark.parametrize(
    ("amount", "resolution", "rate"),
    [("42", 1, "2520"), ("42", 5, "504"), ("42", 15, "168"), ("42", 60, "42"), ("0.01", 1, "0.6")],
)
def test_rates_per_hour(amount: str, resolution: int, rate: str) -> None:
    assert hourly_rate(D(amount), resolution) == D(rate)


@pytest.mark.parametrize(
    ("exact", "text"),
    [
        ("0", "0.00"),
        ("1.005", "1.01"),  # a binary float would say 1.00
        ("1.0049999", "1.00"),
        ("2.675", "2.68"),
        ("999999999999999999999.995", "1000000000000000000000.00"),
        ("10814.3297", "10814.33"),
    ],
)
def test_rounding_is_half_up_to_two_decimals(exact: str, text: str) -> None:
    assert two_decimals(D(exact)) == text


@given(
    pulses=st.lists(st.integers(0, 10**15), min_size=1, max_size=20),
    units=st.decimals("0.000000000001", 10**6, allow_nan=False, places=12),
    normalization=st.decimals("0.0001", 10, places=8),
    calorific=st.decimals("0.0001", 1000, places=8),
)
def test_converting_a_sum_is_summing_what_was_converted(
    pulses: list[int], units: Decimal, normalization: Decimal, calorific: Decimal
) -> None:
    conversion = Conversion(Utility.GAS, units, normalization, calorific)
    parts = [convert(count, conversion) for count in pulses]
    whole = convert(sum(pulses), conversion)
    # As fractions, because adding decimals rounds to the context's precision.
    assert Fraction(whole.volume or 0) == sum(Fraction(part.volume or 0) for part in parts)
    assert Fraction(whole.energy_wh or 0) == sum(Fraction(part.energy_wh or 0) for part in parts)


def test_what_cannot_be_exact_is_an_error_and_no_rounding() -> None:
    with pytest.raises(Inexact):
        convert(10**15 - 1, Conversion(Utility.ELECTRICITY, D("1." + "1" * 250)))
