"""CSV of meters: what each one measures, where it stands, and which device reports it. Pure.

Columns: name, meter_type, unit, units_per_pulse, site, device_id, device_kind, input, and where wanted
normalization_factor, calorific_value, register_modulus, cadence_minutes, serial_number, meter_id.
"""

from collections.abc import Callable, Hashable
from decimal import Decimal
from typing import Literal, NamedTuple, cast

from services.core.conversion import Utility, utility_of
from services.core.csv_table import Problem, Table, TableRow, exact_number, whole_number
from services.core.readings import INTERVALS_MINUTES, MAX_INT32

DeviceKind = Literal["logger", "bridge"]
REQUIRED_COLUMNS = ("name", "meter_type", "unit", "units_per_pulse", "site", "device_id", "device_kind", "input")
OPTIONAL_COLUMNS = (
    "normalization_factor",
    "calorific_value",
    "register_modulus",
    "cadence_minutes",
    "serial_number",
    "meter_id",
)
MAX_INPUT = 32_767


class MeterLine(NamedTuple):
    """A meter as a line of the file describes it; `input` None: a bridge reports it by its id."""

    line: int
    name: str
    meter_type: str
    utility: Utility
    unit: str
    units_per_pulse: Decimal
    site: str
    device_id: str
    device_kind: DeviceKind
    input: int | None
    normalization_factor: Decimal = Decimal(1)
    calorific_value: Decimal | None = None
    register_modulus: int | None = None
    cadence_minutes: int = 1
    serial_number: str | None = None
    meter_id: int | None = None


class MeterFile(NamedTuple):
    """What of a file is sound, and what is not."""

    meters: tuple[MeterLine, ...]
    problems: tuple[Problem, ...]


def parse_meter_csv(text: str) -> MeterFile:
    """Read a whole file. Never raises: what is wrong is in `problems`, ordered by line."""
    table = Table(text, REQUIRED_COLUMNS, OPTIONAL_COLUMNS)
    meters: list[MeterLine] = []
    problems: list[Problem] = []
    neighbours = _Neighbours()
    for row in table.rows():
        meter, faults = _read(row)
        if meter is not None and not faults:
            faults = neighbours.conflicts(meter)
        problems.extend(Problem(row.line, fault) for fault in faults)
        if meter is not None and not faults:
            neighbours.add(meter)
            meters.append(meter)
    return MeterFile(tuple(meters), tuple(sorted([*table.problems, *problems])))


class _Neighbours:
    """What the sound lines so far have taken: names, ids, inputs, and the kind of each device."""

    def __init__(self) -> None:
        self._taken: dict[Hashable, int] = {}
        self._kinds: dict[str, tuple[DeviceKind, int]] = {}

    def conflicts(self, meter: MeterLine) -> list[str]:
        found = [f"{what} is already in line {self._taken[key]}" for key, what in _claims(meter) if key in self._taken]
        kind, line = self._kinds.get(meter.device_id, (meter.device_kind, 0))
        if kind != meter.device_kind:
            found.append(f"device {meter.device_id} is a {meter.device_kind} here and a {kind} in line {line}")
        return found

    def add(self, meter: MeterLine) -> None:
        self._taken.update((key, meter.line) for key, _what in _claims(meter))
        self._kinds.setdefault(meter.device_id, (meter.device_kind, meter.line))


def _claims(meter: MeterLine) -> list[tuple[Hashable, str]]:
    claims: list[tuple[Hashable, str]] = [(("name", meter.name), f"the name {meter.name!r}")]
    if meter.meter_id is not None:
        claims.append((("id", meter.meter_id), f"the meter id {meter.meter_id}"))
    if meter.input is not None:
        place = f"input {meter.input} of device {meter.device_id}"
        claims.append((("input", meter.device_id, meter.input), place))
    return claims


class _Cells:
    """The cells of one line, each checked; faults are collected so that a line tells all of them at once."""

    def __init__(self, row: TableRow) -> None:
        self._cells = row.cells
        self.faults: list[str] = []

    def text(self, name: str, longest: int) -> str:
        value = self._cells.get(name, "")
        if not value:
            self.faults.append(f"{name} is empty")
        elif len(value) > longest:
            self.faults.append(f"{name} has {len(value)} characters, {longest} are allowed")
        return value

    def optional(self, name: str) -> str | None:
        return self._cells.get(name) or None

    def positive(self, name: str, default: Decimal | None) -> Decimal | None:
        text = self._cells.get(name, "")
        if not text and name in OPTIONAL_COLUMNS:
            return default
        try:
            value = exact_number(text, name)
        except ValueError as error:
            self.faults.append(str(error))
            return default
        if value <= 0:
            self.faults.append(f"{name} is {text}, but must be above 0")
        return value

    def whole(self, name: str, lowest: int, highest: int) -> int | None:
        text = self._cells.get(name, "")
        if not text:
            return None
        try:
            return whole_number(text, name, lowest, highest)
        except ValueError as error:
            self.faults.append(str(error))
            return None

    def check(self, judge: Callable[[], str | None]) -> None:
        fault = judge()
        if fault:
            self.faults.append(fault)


def _read(row: TableRow) -> tuple[MeterLine | None, list[str]]:
    cells = _Cells(row)
    name = cells.text("name", 200)
    meter_type = cells.text("meter_type", 60)
    site = cells.text("site", 200)
    device_id = cells.text("device_id", 100)
    kind = cells.text("device_kind", 20).lower()
    utility = _utility(meter_type, cells)
    unit = _unit(cells.text("unit", 20), utility, cells)
    input_ = cells.whole("input", 0, MAX_INPUT)
    cadence = cells.whole("cadence_minutes", 1, 60) or 1
    units_per_pulse = cells.positive("units_per_pulse", None)
    calorific_value = cells.positive("calorific_value", None)
    factor = cells.positive("normalization_factor", Decimal(1)) or Decimal(1)
    modulus = cells.whole("register_modulus", 2, 10**15)
    meter_id = cells.whole("meter_id", 1, MAX_INT32)
    cells.check(lambda: _kind_fault(kind, row.cells["input"]))
    if cadence not in INTERVALS_MINUTES:
        cells.faults.append(f"cadence_minutes is {cadence}; allowed: {', '.join(map(str, INTERVALS_MINUTES))}")
    if utility is not None and utility is not Utility.GAS and (calorific_value is not None or factor != 1):
        cells.faults.append(f"normalization_factor and calorific_value belong to gas, not to {meter_type}")
    if cells.faults or utility is None or units_per_pulse is None:
        return None, cells.faults
    return (
        MeterLine(
            row.line,
            name,
            meter_type,
            utility,
            unit,
            units_per_pulse,
            site,
            device_id,
            cast("DeviceKind", kind),
            input_,
            factor,
            calorific_value,
            modulus,
            cadence,
            cells.optional("serial_number"),
            meter_id,
        ),
        [],
    )


def _utility(meter_type: str, cells: _Cells) -> Utility | None:
    if not meter_type:
        return None
    try:
        return utility_of(meter_type)
    except ValueError as error:
        cells.faults.append(str(error))
        return None


def _unit(text: str, utility: Utility | None, cells: _Cells) -> str:
    """Return the unit as the catalog writes it, whatever the case of the letters in the file."""
    if utility is None or not text:
        return text
    found = next((unit for unit in utility.units if unit.lower() == text.lower()), None)
    if found is None:
        cells.faults.append(f"a {utility} meter cannot measure in {text!r}; allowed: {', '.join(utility.units)}")
    return found or text


def _kind_fault(kind: str, input_text: str) -> str | None:
    if kind not in {"logger", "bridge"}:
        return f"device_kind is {kind!r}; allowed: logger, bridge" if kind else None
    if kind == "logger" and not input_text:
        return "a logger's meter needs the input that counts for it"
    if kind == "bridge" and input_text:
        return "a bridge names its meters by their ids, so input must be empty"
    return None
