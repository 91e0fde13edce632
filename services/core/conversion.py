"""From pulses to energy and volume, in exact decimals.

Source: the export's field reference (which utility has which values) and the meters' settings (units per pulse,
normalisation, calorific value).
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact
from enum import StrEnum
from typing import NamedTuple

# Wide enough for every product of what the catalog admits; should it ever not be, that is an error, not a rounding.
_EXACT = Context(prec=200, traps=[Inexact])
_CENT = Decimal("0.01")
_ROUNDING = Context(prec=200, rounding=ROUND_HALF_UP)
WH_PER_KWH = 1000
MINUTES_PER_HOUR = 60

ENERGY_UNITS = ("kWh",)
VOLUME_UNITS = ("m3", "Nm3", "Sm3", "ft3", "SCF", "Gallon")


class Utility(StrEnum):
    """What a meter measures; decides which values its rows carry."""

    ELECTRICITY = "electricity"
    HEAT = "heat"
    GAS = "gas"
    WATER = "water"
    AIR = "air"

    @property
    def has_energy(self) -> bool:
        """Tell whether rows of this utility carry power and energy."""
        return self in {Utility.ELECTRICITY, Utility.HEAT, Utility.GAS}

    @property
    def has_volume(self) -> bool:
        """Tell whether rows of this utility carry flow and volume."""
        return self in {Utility.GAS, Utility.WATER, Utility.AIR}

    @property
    def units(self) -> tuple[str, ...]:
        """The units that a meter of this utility may measure in."""
        return VOLUME_UNITS if self.has_volume else ENERGY_UNITS


def utility_of(meter_type: str) -> Utility:
    """Return what a meter type, as shown in the export, means.

    Legacy values such as `Electric Pulse Meter` behave as electricity. Raises ValueError for an unknown type.
    """
    known = meter_type.strip().lower()
    if known.startswith("electric"):
        return Utility.ELECTRICITY
    try:
        return Utility(known)
    except ValueError:
        allowed = "Electricity, Water, Gas, Heat, Air (or a legacy type that begins with Electric)"
        raise ValueError(f"unknown meter type {meter_type!r}; allowed: {allowed}") from None


@dataclass(frozen=True, slots=True)
class Conversion:
    """The part of a meter's configuration that turns pulses into quantities."""

    utility: Utility
    units_per_pulse: Decimal
    normalization_factor: Decimal = Decimal(1)
    calorific_value: Decimal | None = None
    """kWh per unit of volume; gas cannot be converted to energy without it."""


class Quantity(NamedTuple):
    """What a window's pulses amount to, exact; None where the utility has no such value."""

    energy_wh: Decimal | None
    volume: Decimal | None


def convert(pulses: int, conversion: Conversion) -> Quantity:
    """Return the energy in Wh and the volume in the meter's unit that `pulses` stand for."""
    amount = _EXACT.multiply(Decimal(pulses), conversion.units_per_pulse)
    if conversion.utility is Utility.GAS:
        volume = _EXACT.multiply(amount, conversion.normalization_factor)
        if conversion.calorific_value is None:
            return Quantity(None, volume)
        kwh = _EXACT.multiply(volume, conversion.calorific_value)
        return Quantity(_EXACT.multiply(kwh, Decimal(WH_PER_KWH)), volume)
    if conversion.utility.has_volume:
        return Quantity(None, amount)
    return Quantity(_EXACT.multiply(amount, Decimal(WH_PER_KWH)), None)


def hourly_rate(amount: Decimal, resolution_minutes: int) -> Decimal:
    """Return `amount` per window as a rate per hour: W for Wh, unit/h for a volume."""
    return _EXACT.multiply(amount, Decimal(MINUTES_PER_HOUR // resolution_minutes))


def two_decimals(value: Decimal) -> str:
    """Round half up to two decimals, the one rounding between pulse and payload."""
    return format(value.quantize(_CENT, context=_ROUNDING), "f")
