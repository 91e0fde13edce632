"""Bringing a list of meters into the catalog: all of it in one transaction, and nothing twice.

A meter of the same name that is there already, exactly as the line describes it, is left as it is, so a file can be
imported again after lines were added. A line that contradicts the catalog is a problem: configurations are not changed
by an import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.api.catalog_queries import Attachment, Device, Meter, Site, attachments, devices, meters, sites
from services.api.catalog_queries import taken_meter_ids as find_taken_ids
from services.api.catalog_store import (
    BridgeLink,
    CatalogChange,
    InputLink,
    NewDevice,
    NewMeter,
    NewSite,
    catalog_change,
)
from services.core.csv_table import Problem
from services.core.meter_csv import MeterLine
from services.platform.errors import UserError
from services.platform.postgres import Connection, Pool

COMPARED = (
    "meter_type",
    "utility",
    "unit",
    "units_per_pulse",
    "normalization_factor",
    "calorific_value",
    "register_modulus",
    "cadence_minutes",
    "serial_number",
)
"""What of a meter that exists must be as the line says."""
COMPARED_CHANNEL = ("utility", "unit", "units_per_pulse")
"""The same for a channel of an interval file, which says nothing of the rest."""


class ImportRefusedError(UserError):
    """Lines contradict each other or the catalog; nothing was written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} lines contradict the catalog")
        self.problems = tuple(problems)


class Imported(NamedTuple):
    """What an import did; revision None: it changed nothing."""

    organization: str
    revision: int | None
    sites: int
    devices: int
    meters: int
    unchanged: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ImportRules:
    """How strictly lines are held against the catalog, and the zone of sites that the import creates."""

    time_zone: str
    skip_bad: bool = False
    compared: tuple[str, ...] = COMPARED


async def import_meters(
    pool: Pool | Connection, organization: str, lines: Sequence[MeterLine], rules: ImportRules
) -> Imported:
    """Register what is new of `lines`, and the organization, sites and devices that they name.

    Raises ImportRefusedError, having written nothing, where lines contradict the catalog and `rules` do not skip them.
    """
    async with catalog_change(pool) as change:
        organization_id = await change.organization(organization)
        known = await _known(change, organization_id, lines)
        fresh: list[MeterLine] = []
        problems: list[Problem] = []
        for line in lines:
            faults, is_new = known.judge(line, rules.compared)
            problems.extend(Problem(line.line, fault) for fault in faults)
            if is_new and not faults:
                fresh.append(line)
        if problems and not rules.skip_bad:
            raise ImportRefusedError(problems)
        site_count, device_count = await _add(change, organization_id, fresh, known, rules)
        unchanged = len(lines) - len(fresh) - len({problem.line for problem in problems})
        revision = change.revision if change.has_changed else None
    return Imported(organization, revision, site_count, device_count, len(fresh), unchanged, tuple(problems))


async def _add(
    change: CatalogChange, organization_id: int, fresh: Sequence[MeterLine], known: "_Known", rules: ImportRules
) -> tuple[int, int]:
    """Write the new lines; return how many sites and devices that took."""
    new_sites = list(dict.fromkeys(line.site for line in fresh if known.site_id(line.site) is None))
    ids = await change.add_sites(organization_id, [NewSite(name, rules.time_zone) for name in new_sites])
    site_ids = dict(zip(new_sites, ids, strict=True))
    kinds = {line.device_id: line.device_kind for line in fresh if line.device_id not in known.devices}
    await change.add_devices(organization_id, [NewDevice(*device) for device in kinds.items()])
    meter_ids = await change.add_meters(
        organization_id, [_new_meter(line, known.site_id(line.site) or site_ids[line.site]) for line in fresh]
    )
    pairs = list(zip(fresh, meter_ids, strict=True))
    await change.attach_inputs(
        [InputLink(line.device_id, line.input, meter_id) for line, meter_id in pairs if line.input is not None]
    )
    await change.attach_bridges(
        [BridgeLink(line.device_id, meter_id) for line, meter_id in pairs if line.input is None]
    )
    return len(new_sites), len(kinds)


def _new_meter(line: MeterLine, site_id: int) -> NewMeter:
    return NewMeter(
        name=line.name,
        meter_type=line.meter_type,
        utility=line.utility,
        unit=line.unit,
        units_per_pulse=line.units_per_pulse,
        site_id=site_id,
        normalization_factor=line.normalization_factor,
        calorific_value=line.calorific_value,
        register_modulus=line.register_modulus,
        cadence_minutes=line.cadence_minutes,
        serial_number=line.serial_number,
        meter_id=line.meter_id,
    )


async def _known(change: CatalogChange, organization_id: int, lines: Sequence[MeterLine]) -> "_Known":
    connection = change.connection
    device_ids = {line.device_id for line in lines}
    return _Known(
        organization_id,
        await meters(connection, organization_id),
        await sites(connection, organization_id),
        await devices(connection, device_ids),
        await attachments(connection, device_ids=device_ids),
        await find_taken_ids(connection, [line.meter_id for line in lines if line.meter_id is not None]),
    )


class _Known:
    """The part of the catalog that the lines touch, as it is now."""

    def __init__(
        self,
        organization_id: int,
        known_meters: Sequence[Meter],
        known_sites: Sequence[Site],
        known_devices: Sequence[Device],
        links: Sequence[Attachment],
        taken_meter_ids: set[int],
    ) -> None:
        self._organization_id = organization_id
        self._meters: dict[str, list[Meter]] = {}
        for meter in known_meters:
            self._meters.setdefault(meter.name, []).append(meter)
        self._sites: dict[str, list[Site]] = {}
        for site in known_sites:
            self._sites.setdefault(site.name, []).append(site)
        self._site_ids = {str(site.site_id): site.site_id for site in known_sites}
        self.devices = {device.device_id: device for device in known_devices}
        self._taken_meter_ids = taken_meter_ids
        self._inputs: dict[tuple[str, int], int | None] = {}
        self._bridges: dict[tuple[str, int], bool] = {}
        for link in sorted(links, key=_in_force_last):
            if link.input is not None:
                self._inputs[link.device_id, link.input] = link.meter_id
            elif link.meter_id is not None:
                self._bridges[link.device_id, link.meter_id] = link.attached

    def site_id(self, site: str) -> int | None:
        """Return the site of that name, or of that id where no site is named so; None: there is none yet."""
        named = self._sites.get(site)
        return named[0].site_id if named else self._site_ids.get(site)

    def judge(self, line: MeterLine, compared: tuple[str, ...]) -> tuple[list[str], bool]:
        """Return what contradicts the catalog, and whether the meter is new to it."""
        named = self._meters.get(line.name, [])
        if len(named) > 1:
            ids = ", ".join(str(meter.meter_id) for meter in named)
            return [f"several meters are already named {line.name!r} (ids {ids})"], False
        if named:
            return self._differences(line, named[0], compared), False
        faults = [*self._site_faults(line.site), *self._device_faults(line)]
        if line.meter_id in self._taken_meter_ids:
            faults.append(f"the meter id {line.meter_id} is taken by another meter")
        occupant = None if line.input is None else self._inputs.get((line.device_id, line.input))
        if occupant is not None:
            faults.append(f"input {line.input} of {line.device_id} counts for meter {occupant} already")
        return faults, True

    def _differences(self, line: MeterLine, meter: Meter, compared: tuple[str, ...]) -> list[str]:
        found = [
            f"{name} is {getattr(meter, name)}, not {getattr(line, name)}"
            for name in compared
            if getattr(meter, name) != getattr(line, name)
        ]
        if line.meter_id not in {None, meter.meter_id}:
            found.append(f"its id is {meter.meter_id}, not {line.meter_id}")
        if compared is COMPARED:
            if self.site_id(line.site) != meter.site_id:
                found.append(f"its site is {meter.site_name!r}, not {line.site!r}")
            if not self._reports(line, meter.meter_id):
                place = line.device_id if line.input is None else f"input {line.input} of {line.device_id}"
                found.append(f"{place} does not report it")
        return [f"the meter {line.name!r} is there already, but {'; '.join(found)}"] if found else []

    def _reports(self, line: MeterLine, meter_id: int) -> bool:
        if line.input is None:
            return self._bridges.get((line.device_id, meter_id), False)
        return self._inputs.get((line.device_id, line.input)) == meter_id

    def _site_faults(self, site: str) -> list[str]:
        if len(self._sites.get(site, [])) > 1:
            ids = ", ".join(str(found.site_id) for found in self._sites[site])
            return [f"several sites are named {site!r}; give the id instead: {ids}"]
        if site.isdecimal() and self.site_id(site) is None:
            return [f"there is no site with the id {site}"]
        return []

    def _device_faults(self, line: MeterLine) -> list[str]:
        device = self.devices.get(line.device_id)
        if device is None:
            return []
        if device.organization_id != self._organization_id:
            return [f"the device id {line.device_id} is taken on this platform; choose another"]
        if device.kind != line.device_kind:
            return [f"device {line.device_id} is a {device.kind}, not a {line.device_kind}"]
        return []


def _in_force_last(link: Attachment) -> tuple[datetime, int]:
    return link.valid_from, link.revision
