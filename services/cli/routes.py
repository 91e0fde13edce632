"""From the meter that a file names to the device that reports it: which topic, which device, which input."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.api.catalog_queries import Attachment, Meter
from services.cli.publishing import RoutedReading
from services.core.conversion import ENERGY_UNITS
from services.core.csv_table import Problem
from services.core.messages import WireReading
from services.core.nem12 import UNITS_PER_PULSE, Nem12File
from services.core.reading_csv import AmountKind, CsvReading, meters_named, pulses_of
from services.core.readings import MAX_VALUE
from services.core.registry import Timeline
from services.core.times import iso_seconds
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER


class _Route(NamedTuple):
    device_id: str
    input: int | None
    timeline: Timeline
    """The meter attached, by time."""


class Routes:
    """The meters of an organization by name and id, and the devices that report them, by time."""

    def __init__(self, meters: Sequence[Meter], links: Iterable[Attachment]) -> None:
        self._by_name: dict[str, list[Meter]] = {}
        for meter in meters:
            self._by_name.setdefault(meter.name, []).append(meter)
        self._by_id = {str(meter.meter_id): meter for meter in meters}
        self._routes: dict[int, list[_Route]] = {}
        self._collect(sorted(links, key=lambda link: (link.device_id, -1 if link.input is None else link.input)))

    def meter(self, named: str) -> Meter:
        """Return the meter of that name, or of that id where none is named so. Raises ValueError."""
        found = self._by_name.get(named, [])
        if len(found) > 1:
            ids = ", ".join(str(meter.meter_id) for meter in found)
            raise ValueError(f"several meters are named {named!r}; give the id instead: {ids}")
        meter = found[0] if found else self._by_id.get(named)
        if meter is None:
            raise ValueError(f"no meter {named!r} is registered; `meterpost meters list` shows those that are")
        return meter

    def route(
        self, meter: Meter, measured_at: datetime, interval_minutes: int, value: int, *, register: bool, revision: int
    ) -> RoutedReading:
        """Return the reading as the device attached at that time reports it. Raises ValueError where none is."""
        route = next(
            (one for one in self._routes.get(meter.meter_id, ()) if one.timeline.at(measured_at) == meter.meter_id),
            None,
        )
        if route is None:
            raise ValueError(f"no device reported meter {meter.name!r} at {iso_seconds(measured_at)}")
        ends_at = measured_at + timedelta(minutes=interval_minutes)
        reading = _reading(route.input, meter.meter_id, measured_at, interval_minutes, value, register, revision)
        topic = READINGS_BRIDGE if route.input is None else READINGS_LOGGER
        return RoutedReading(topic, route.device_id, ends_at, reading)

    def _collect(self, links: Sequence[Attachment]) -> None:
        timelines: dict[tuple[str, int | None, int | None], Timeline] = {}
        meters: dict[tuple[str, int | None, int | None], set[int]] = {}
        for link in links:
            # An input is one line through time with changing meters; a bridge has one line for each of its meters.
            key = (link.device_id, link.input, link.meter_id if link.input is None else None)
            timeline = timelines.setdefault(key, Timeline())
            timeline.record(link.valid_from, link.revision, link.meter_id if link.attached else None)
            if link.meter_id is not None:
                meters.setdefault(key, set()).add(link.meter_id)
        for key, meter_ids in meters.items():
            for meter_id in meter_ids:
                self._routes.setdefault(meter_id, []).append(_Route(key[0], key[1], timelines[key]))


class Routed(NamedTuple):
    """What of a file can be published."""

    readings: list[RoutedReading]
    problems: list[Problem]


def route_nem12(file: Nem12File, routes: Routes) -> Routed:
    """Return every interval of the file's sound days that has a value."""
    routed = Routed([], [])
    for day in file.days:
        step = timedelta(minutes=day.interval_minutes)
        try:
            meter = _channel_meter(routes, day.channel.name)
            routed.readings.extend(
                routes.route(
                    meter, day.starts_at + place * step, day.interval_minutes, pulses, register=False, revision=0
                )
                for place, pulses in enumerate(day.pulses)
                if pulses is not None
            )
        except ValueError as error:
            routed.problems.append(Problem(day.line, str(error)))
    return routed


def route_csv(readings: Sequence[CsvReading], routes: Routes, *, rounded: bool) -> Routed:
    """Return every line as a reading of its meter, amounts as pulses of that meter."""
    routed = Routed([], [])
    meters: dict[str, Meter] = {}
    for named, line in meters_named(readings):
        try:
            meters[named] = routes.meter(named)
        except ValueError as error:
            routed.problems.append(Problem(line, str(error)))
    for reading in readings:
        meter = meters.get(reading.meter)
        if meter is None:
            continue  # said once, at the first line that names it
        try:
            routed.readings.append(
                routes.route(
                    meter,
                    reading.measured_at,
                    reading.interval_minutes,
                    _value(reading, meter, rounded),
                    register=reading.kind is AmountKind.REGISTER,
                    revision=reading.revision,
                )
            )
        except ValueError as error:
            routed.problems.append(Problem(reading.line, str(error)))
    routed.problems.sort()
    return routed


def total_of(readings: Iterable[RoutedReading]) -> int:
    """Return the sum of all pulses; registers count for nothing."""
    return sum(pulses for one in readings if isinstance(pulses := one.reading.pulses, int))


def _channel_meter(routes: Routes, name: str) -> Meter:
    try:
        meter = routes.meter(name)
    except ValueError as error:
        raise ValueError(
            f"{error} (register the file's channels with `meterpost meters import --from-nem12`)"
        ) from None
    if meter.unit not in ENERGY_UNITS or meter.units_per_pulse != UNITS_PER_PULSE:
        size = f"{meter.units_per_pulse} {meter.unit}"
        raise ValueError(f"a pulse of meter {name!r} is {size}, but of a NEM12 channel {UNITS_PER_PULSE} kWh")
    return meter


def _value(reading: CsvReading, meter: Meter, rounded: bool) -> int:
    if reading.kind in {AmountKind.PULSES, AmountKind.REGISTER}:
        return int(reading.amount)
    if reading.kind is AmountKind.KWH and meter.unit not in ENERGY_UNITS:
        raise ValueError(f"meter {meter.name!r} measures in {meter.unit}, so it has no kWh; use the column value")
    try:
        value = pulses_of(reading.amount, meter.units_per_pulse, rounded=rounded)
    except ValueError as error:
        raise ValueError(f"{error} (--round rounds such amounts)") from None
    if value > MAX_VALUE:
        raise ValueError(f"{reading.amount} is more than {MAX_VALUE} pulses of {meter.units_per_pulse} {meter.unit}")
    return value


def _reading(
    input_: int | None,
    meter_id: int,
    measured_at: datetime,
    interval_minutes: int,
    value: int,
    register: bool,
    revision: int,
) -> WireReading:
    # Four shapes, because a field that is left out is not on the wire at all.
    if input_ is None:
        if register:
            return WireReading(measured_at, interval_minutes, meter_id=meter_id, register=value, revision=revision)
        return WireReading(measured_at, interval_minutes, meter_id=meter_id, pulses=value, revision=revision)
    if register:
        return WireReading(measured_at, interval_minutes, input=input_, register=value, revision=revision)
    return WireReading(measured_at, interval_minutes, input=input_, pulses=value, revision=revision)
