"""From pulses to energy and volume: cases computed by hand, per utility and unit."""

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

D = Decimal


@pytest.mark.parametrize(
    ("utility", "pulses", "kwh_per_pulse", "energy_wh"),
    [
        # Wh = pulses x kWh per pulse x 1000
        (Utility.ELECTRICITY, 42, "0.001", "42"),
        (Utility.ELECTRICITY, 7, "0.0003125", "2.1875"),  # 3200 pulses a kWh
        (Utility.ELECTRICITY, 0, "0.001", "0"),
        (Utility.HEAT, 3, "1", "3000"),
        (Utility.HEAT, 12, "0.25", "3000"),
        (Utility.HEAT, 1, "0.000001", "0.001"),
    ],
)
def test_energy_of_electricity_and_heat(utility: Utility, pulses: int, kwh_per_pulse: str, energy_wh: str) -> None:
    assert convert(pulses, Conversion(utility, D(kwh_per_pulse))) == (D(energy_wh), None)


@pytest.mark.parametrize("utility", [Utility.WATER, Utility.AIR])
@pytest.mark.parametrize(
    ("pulses", "units_per_pulse", "volume"),
    [
        # volume = pulses x units per pulse, in the meter's own unit whatever it is: m3, ft3, Gallon ...
        (17, "0.5", "8.5"),
        (3, "10", "30"),
        (1, "0.0001", "0.0001"),
        (0, "0.5", "0"),
    ],
)
def test_volume_of_water_and_air(utility: Utility, pulses: int, units_per_pulse: str, volume: str) -> None:
    assert convert(pulses, Conversion(utility, D(units_per_pulse))) == (None, D(volume))


@pytest.mark.parametrize("utility", [Utility.WATER, Utility.AIR, Utility.ELECTRICITY, Utility.HEAT])
def test_only_gas_is_normalised_and_has_a_calorific_value(utility: Utility) -> None:
    plain = Conversion(utility, D("0.1"))
    assert convert(5, Conversion(utility, D("0.1"), D("0.9"), D("11"))) == convert(5, plain)


@pytest.mark.parametrize(
    ("units_per_pulse", "normalization", "calorific", "energy_wh", "volume"),
    [
        # volume = pulses x units x factor; Wh = volume x calorific value x 1000; always 100 pulses
        ("0.01", "1", "11", "11000", "1"),
        ("0.01", "1", None, None, "1"),
        ("0.01", "0.9626", "1", "962.6", "0.9626"),
        ("0.01", "0.9626", "11.2345", "10814.3297", "0.9626"),
        ("0.01", "0.9626", None, None, "0.9626"),
        ("1", "1.05", "0.3", "31500", "105"),  # ft3: about 0.3 kWh each
        ("0.1", "1", "10.55", "105500", "10"),
    ],
)
def test_gas_in_all_its_combinations(
    units_per_pulse: str, normalization: str, calorific: str | None, energy_wh: str | None, volume: str
) -> None:
    conversion = Conversion(
        Utility.GAS, D(units_per_pulse), D(normalization), None if calorific is None else D(calorific)
    )
    assert convert(100, conversion) == (None if energy_wh is None else D(energy_wh), D(volume))


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
