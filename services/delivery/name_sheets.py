"""What stands around the time in the rows of each meter, remembered as long as the names in it are in force."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from services.core.blocks import Layout, MeterNames
from services.delivery.model import Run, Version
from services.delivery.roster import Roster
from services.platform.errors import OperatorNeeded
from services.platform.postgres import Connection

# Meters, over all sheets; some 400 bytes each.
MOST_REMEMBERED = 200_000
MOST_SHEETS = 64
_ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))

# The names in force at $2 as known at revision $3, and the stretch around $2 in which nothing of them changes. LEFT: a
# name that is missing must be seen, not silently cost a row. Infinite times cannot be compared outside of PostgreSQL.
_NAMES = """
SELECT k.meter_id, t.meter_type, c.name, c.unit, c.site_id, s.name,
       greatest(c.valid_from, s.valid_from, '0001-01-01Z'), least(cn.valid_from, sn.valid_from, '9999-01-01Z')
FROM unnest($1::integer[]) AS k (meter_id)
LEFT JOIN meter t USING (meter_id)
LEFT JOIN LATERAL (
    SELECT name, unit, site_id, valid_from FROM meter_configuration
    WHERE meter_id = k.meter_id AND valid_from <= $2 AND revision <= $3
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (
    SELECT name, valid_from FROM site_description
    WHERE site_id = c.site_id AND valid_from <= $2 AND revision <= $3
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
LEFT JOIN LATERAL (
    SELECT valid_from FROM meter_configuration
    WHERE meter_id = k.meter_id AND valid_from > $2 AND revision <= $3 ORDER BY valid_from LIMIT 1) cn ON true
LEFT JOIN LATERAL (
    SELECT valid_from FROM site_description
    WHERE site_id = c.site_id AND valid_from > $2 AND revision <= $3 ORDER BY valid_from LIMIT 1) sn ON true
"""


class SheetKey(NamedTuple):
    """Whose names, as known when, written how."""

    organization_id: int
    catalog_revision: int
    layout: Layout
    resolution_minutes: int


@dataclass(slots=True)
class Sheet:
    """What stands before and behind the time, by meter (ten digits), in windows from `holds_from` to `holds_until`."""

    holds_from: datetime = _ALWAYS[0]
    holds_until: datetime = _ALWAYS[1]
    before: dict[bytes, bytes] = field(default_factory=dict)
    behind: dict[bytes, bytes] = field(default_factory=dict)
    filling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Jobs with the same windows come at the same time; one asks for all."""
    roster: Roster = field(default_factory=Roster)
    in_order: tuple[list[bytes], list[bytes]] = ([], [])
    """What stands before and behind, as the meters stand in the roster."""

    def around(self, meters: Sequence[bytes]) -> tuple[list[bytes], list[bytes]] | None:
        """Return what stands before and behind the time in the rows of these meters; None where one is not known."""
        place = self.roster.place(meters)
        if place is not None:
            return self.in_order[0][place], self.in_order[1][place]
        try:
            return [*map(self.before.__getitem__, meters)], [*map(self.behind.__getitem__, meters)]
        except KeyError:
            return None

    def put_in_order(self) -> None:
        """Have the roster hold all meters that are known."""
        self.roster = Roster(self.before)
        self.in_order = (
            [*map(self.before.__getitem__, self.roster.meters)],
            [*map(self.behind.__getitem__, self.roster.meters)],
        )


class NameSheets:
    """Sheets by organization and catalog revision, the most recently used ones.

    Where runs say the revision in which their organization's catalog last changed, sheets outlive changes of others'.
    """

    def __init__(self, most_remembered: int = MOST_REMEMBERED) -> None:
        self._most_remembered = most_remembered
        self._sheets: list[tuple[SheetKey, Sheet]] = []

    def known(
        self, run: Run, version: Version, layout: Layout, at: datetime, meters: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]] | None:
        """Return what `around` would, where all of it is remembered."""
        key = SheetKey(run.job.organization_id, run.catalog_revision, layout, version.resolution_minutes)
        return self._sheet(key, at).around(meters)

    async def around(
        self, connection: Connection, run: Run, version: Version, layout: Layout, at: datetime, meters: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        """Return what stands before and behind the time in these meters' rows of the window that starts at `at`.

        Raises OperatorNeeded where a meter has no name then.
        """
        key = SheetKey(run.job.organization_id, run.catalog_revision, layout, version.resolution_minutes)
        while True:
            async with self._sheet(key, at).filling:
                found = self._sheet(key, at).around(meters)
                if found is None:
                    found = await self._fill(connection, key, at, meters)
            # None: another one emptied the sheet while we waited, so what it held is asked for again.
            if found is not None:
                return found

    async def _fill(
        self, connection: Connection, key: SheetKey, at: datetime, meters: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]] | None:
        known = self._sheet(key, at).before
        missing = [meter for meter in dict.fromkeys(meters) if meter not in known]
        rows = await connection.fetch(_NAMES, [int(meter) for meter in missing], at, key.catalog_revision)
        # Others may have changed the sheets meanwhile.
        sheet = self._sheet(key, at)
        for meter_id, meter_type, name, unit, site_id, site_name, holds_from, holds_until in rows:
            if meter_type is None or name is None or site_name is None:
                nameless = f"site {site_id}" if name is not None and meter_type is not None else f"meter {meter_id}"
                raise OperatorNeeded(f"the catalog has no name for {nameless} at {at.isoformat()}")
            names = MeterNames(meter_id, meter_type, name, unit, site_id, site_name)
            digits = b"%010d" % meter_id
            sheet.before[digits], sheet.behind[digits] = key.layout.around(names, key.resolution_minutes)
            sheet.holds_from = max(sheet.holds_from, holds_from)
            sheet.holds_until = min(sheet.holds_until, holds_until)
        sheet.put_in_order()
        found = sheet.around(meters)
        self._forget(sheet)
        return found

    def _sheet(self, key: SheetKey, at: datetime) -> Sheet:
        """Return the sheet that tells of this time, a new one if there is none, and put it in front."""
        for place, (known, sheet) in enumerate(self._sheets):
            if known == key and sheet.holds_from <= at < sheet.holds_until:
                self._sheets.insert(0, self._sheets.pop(place))
                return sheet
        sheet = Sheet()
        self._sheets.insert(0, (key, sheet))
        return sheet

    def _forget(self, kept: Sheet) -> None:
        """Drop the least recently used sheets while too much is remembered; the last one in use stays."""
        while len(self._sheets) > MOST_SHEETS or (
            len(self._sheets) > 1 and _count(sheet for _key, sheet in self._sheets) > self._most_remembered
        ):
            self._sheets.pop()
        if _count([kept]) > self._most_remembered:
            kept.before.clear()
            kept.behind.clear()
            kept.put_in_order()


def _count(sheets: Iterable[Sheet]) -> int:
    return sum(len(sheet.before) for sheet in sheets)
