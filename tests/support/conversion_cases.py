"""From pulses to energy and volume: each meter type in each of its units, computed by hand.

The types and units are those of the export's field reference. Energy is in Wh, 1000 for each kWh; volume is in the
meter's own unit, whatever it is. Gas has both: its volume is normalised, and each unit of it holds the calorific value
in kWh.
"""

from decimal import Decimal
from typing import NamedTuple

from services.core.conversion import Conversion, utility_of


class Case(NamedTuple):
    """A meter, the pulses of one window, and what they amount to; None where the export says N/A."""

    meter_type: str
    unit: str
    pulses: int
    units_per_pulse: str
    energy_wh: str | None
    volume: str | None
    normalization_factor: str = "1"
    calorific_value: str | None = None

    @property
    def conversion(self) -> Conversion:
        calorific = None if self.calorific_value is None else Decimal(self.calorific_value)
        return Conversion(
            utility_of(self.meter_type), Decimal(self.units_per_pulse), Decimal(self.normalization_factor), calorific
        )

    @property
    def expected(self) -> tuple[Decimal | None, Decimal | None]:
        energy, volume = (None if text is None else Decimal(text) for text in (self.energy_wh, self.volume))
        return energy, volume


_ENERGY = [
    Case("Electricity", "kWh", 42, "0.001", "42", None),  # 42 x 0.001 = 0.042 kWh
    Case("Electricity", "kWh", 7, "0.0003125", "2.1875", None),  # 3200 pulses a kWh: 7 / 3200 = 0.0021875 kWh
    Case("Electricity", "kWh", 0, "0.001", "0", None),
    Case("Electric Pulse Meter", "kWh", 250, "0.004", "1000", None),  # 250 x 0.004 = 1 kWh
    Case("Heat", "kWh", 12, "0.25", "3000", None),  # 12 x 0.25 = 3 kWh
    Case("Heat", "kWh", 1, "0.000001", "0.001", None),  # 0.000001 kWh
    # What only gas has changes nothing: 5 x 0.1 = 0.5 kWh.
    Case("Electricity", "kWh", 5, "0.1", "500", None, "0.9", "11"),
]
_WATER = [
    Case("Water", "m3", 17, "0.5", None, "8.5"),  # 17 x 0.5
    Case("Water", "Nm3", 9, "0.01", None, "0.09"),  # 9 x 0.01
    Case("Water", "Sm3", 11, "0.1", None, "1.1"),  # 11 x 0.1
    Case("Water", "ft3", 23, "10", None, "230"),  # 23 x 10
    Case("Water", "SCF", 7, "100", None, "700"),  # 7 x 100
    Case("Water", "Gallon", 64, "0.25", None, "16"),  # 64 / 4
    Case("Water", "m3", 5, "0.1", None, "0.5", "0.9", "11"),  # 5 x 0.1, not normalised
]
_AIR = [
    Case("Air", "m3", 31, "0.1", None, "3.1"),  # 31 x 0.1
    Case("Air", "Nm3", 8, "1.25", None, "10"),  # 8 x 5 / 4
    Case("Air", "Sm3", 13, "0.02", None, "0.26"),  # 13 x 0.02
    Case("Air", "ft3", 5, "0.5", None, "2.5"),  # 5 / 2
    Case("Air", "SCF", 1001, "0.001", None, "1.001"),  # 1001 / 1000
    Case("Air", "Gallon", 3, "0.3333", None, "0.9999"),  # 3 x 0.3333
    Case("Air", "Nm3", 5, "0.1", None, "0.5", "0.9", "11"),  # 5 x 0.1, not normalised
]
# 100 pulses each: with and without normalisation, with and without a calorific value.
_GAS = [
    # 100 x 0.01 = 1 m3; x 11 = 11 kWh; normalised 1 x 0.9626; 0.9626 x 11.2345 = 10.78512 + 0.0292097 = 10.8143297 kWh
    Case("Gas", "m3", 100, "0.01", None, "1"),
    Case("Gas", "m3", 100, "0.01", "11000", "1", "1", "11"),
    Case("Gas", "m3", 100, "0.01", None, "0.9626", "0.9626"),
    Case("Gas", "m3", 100, "0.01", "10814.3297", "0.9626", "0.9626", "11.2345"),
    # 100 x 0.1 = 10 Nm3; x 10.5 = 105 kWh; normalised 10 x 0.95 = 9.5; 9.5 x 10.5 = 95 + 4.75 = 99.75 kWh
    Case("Gas", "Nm3", 100, "0.1", None, "10"),
    Case("Gas", "Nm3", 100, "0.1", "105000", "10", "1", "10.5"),
    Case("Gas", "Nm3", 100, "0.1", None, "9.5", "0.95"),
    Case("Gas", "Nm3", 100, "0.1", "99750", "9.5", "0.95", "10.5"),
    # 100 x 0.05 = 5 Sm3; x 9.97 = 49.85 kWh; normalised 5 x 1.02 = 5.1; 5.1 x 9.97 = 51 - 0.153 = 50.847 kWh
    Case("Gas", "Sm3", 100, "0.05", None, "5"),
    Case("Gas", "Sm3", 100, "0.05", "49850", "5", "1", "9.97"),
    Case("Gas", "Sm3", 100, "0.05", None, "5.1", "1.02"),
    Case("Gas", "Sm3", 100, "0.05", "50847", "5.1", "1.02", "9.97"),
    # 100 x 1 = 100 ft3; x 0.3 = 30 kWh; normalised 100 x 1.05 = 105; 105 x 0.3 = 31.5 kWh
    Case("Gas", "ft3", 100, "1", None, "100"),
    Case("Gas", "ft3", 100, "1", "30000", "100", "1", "0.3"),
    Case("Gas", "ft3", 100, "1", None, "105", "1.05"),
    Case("Gas", "ft3", 100, "1", "31500", "105", "1.05", "0.3"),
    # 100 x 2 = 200 SCF; x 0.29 = 58 kWh; normalised 200 x 0.98 = 196; 196 x 0.29 = 58 - 1.16 = 56.84 kWh
    Case("Gas", "SCF", 100, "2", None, "200"),
    Case("Gas", "SCF", 100, "2", "58000", "200", "1", "0.29"),
    Case("Gas", "SCF", 100, "2", None, "196", "0.98"),
    Case("Gas", "SCF", 100, "2", "56840", "196", "0.98", "0.29"),
    # 100 x 0.5 = 50 Gallon; x 0.04 = 2 kWh; normalised 50 x 0.9 = 45; 45 x 0.04 = 1.8 kWh
    Case("Gas", "Gallon", 100, "0.5", None, "50"),
    Case("Gas", "Gallon", 100, "0.5", "2000", "50", "1", "0.04"),
    Case("Gas", "Gallon", 100, "0.5", None, "45", "0.9"),
    Case("Gas", "Gallon", 100, "0.5", "1800", "45", "0.9", "0.04"),
]
CASES = [*_ENERGY, *_WATER, *_AIR, *_GAS]
