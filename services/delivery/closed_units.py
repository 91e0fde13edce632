"""The units in which windows were counted, where the catalog says another one by now.

Energy and volume are made when a window is closed, by the factors that were known then, and never again; the names in
an export are those known when its run was planned. A unit that was corrected in between would stand beside a value of
the old one. Hardly ever is there one: a run costs one short query, and another where the catalog has changed at all.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from services.core.blocks import Layout, MeterNames
from services.core.schedule import Slot
from services.delivery.model import Run, Version
from services.platform.postgres import Connection

MOST_REMEMBERED = 500

_FIRST_REVISION = """
SELECT min(catalog_revision) FROM window_closing
WHERE resolution_minutes = $1 AND window_start >= $2 AND window_start < $3
"""

# Read as a whole, as it has no key by revision; what is found is remembered for the runs of all organizations.
_CORRECTED = """
SELECT m.organization_id, array_agg(DISTINCT m.meter_id)
FROM meter_configuration c JOIN meter m USING (meter_id)
WHERE c.revision > $1 AND c.revision <= $2
  AND EXISTS (SELECT FROM meter_configuration o WHERE o.meter_id = c.meter_id AND o.unit <> c.unit)
GROUP BY m.organization_id
"""

_NAMES = """
SELECT k.meter_id, t.meter_type, c.name, counted.unit, c.site_id, s.name
FROM unnest($1::integer[]) AS k (meter_id)
JOIN meter t USING (meter_id)
JOIN window_closing w ON w.resolution_minutes = $4 AND w.window_start = $2
                     AND w.bucket = k.meter_id % (SELECT max(bucket) + 1 FROM window_frontier)
JOIN LATERAL (
    SELECT name, unit, site_id FROM meter_configuration
    WHERE meter_id = k.meter_id AND valid_from <= $2 AND revision <= $3
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
JOIN LATERAL (
    SELECT unit FROM meter_configuration
    WHERE meter_id = k.meter_id AND valid_from <= $2 AND revision <= w.catalog_revision
    ORDER BY valid_from DESC, revision DESC LIMIT 1) counted ON counted.unit <> c.unit
JOIN LATERAL (
    SELECT name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= $2 AND revision <= $3
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
"""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
Around = tuple[list[bytes], list[bytes]]


class _Span(NamedTuple):
    """Catalog revisions after the first, up to the last."""

    first: int
    last: int


class ClosedUnits:
    """Looks for units that were corrected, and remembers what it found: closed windows and revisions never change."""

    def __init__(self) -> None:
        self._first: OrderedDict[tuple[int, Slot], int | None] = OrderedDict()
        self._corrected: OrderedDict[_Span, Mapping[int, Sequence[int]]] = OrderedDict()

    def known(self, run: Run, version: Version) -> Sequence[int] | None:
        """Return what `corrected` would, where it is remembered."""
        key = (version.resolution_minutes, run.slot)
        if key not in self._first:
            return None
        first = self._first[key]
        if first is None or first >= run.catalog_revision:
            return ()
        corrected = self._corrected.get(_Span(first, run.catalog_revision))
        return None if corrected is None else corrected.get(run.job.organization_id, ())

    async def corrected(self, connection: Connection, run: Run, version: Version) -> Sequence[int]:
        """Return meters whose unit may be another one since some window of the run was closed; nearly always none."""
        key = (version.resolution_minutes, run.slot)
        first: int | None = await connection.fetchval(_FIRST_REVISION, version.resolution_minutes, *run.slot)
        _remember(self._first, key, first)
        if first is None or first >= run.catalog_revision:
            return ()
        span = _Span(first, run.catalog_revision)
        corrected = self._corrected.get(span)
        if corrected is None:
            corrected = {row[0]: row[1] for row in await connection.fetch(_CORRECTED, *span)}
            _remember(self._corrected, span, corrected)
        return corrected.get(run.job.organization_id, ())

    async def put_right(
        self,
        connection: Connection,
        run: Run,
        version: Version,
        layout: Layout,
        at: datetime,
        meters: Sequence[bytes],
        around: Around,
        corrected: Sequence[int],
    ) -> Around:
        """Return what stands around the time in a window's rows, with the units in which it was counted."""
        rows = await connection.fetch(_NAMES, corrected, at, run.catalog_revision, version.resolution_minutes)
        if not rows:
            return around
        before, behind = list(around[0]), list(around[1])
        places = {meter: place for place, meter in enumerate(meters)}
        for row in rows:
            place = places.get(b"%010d" % row["meter_id"])
            if place is not None:
                before[place], behind[place] = layout.around(MeterNames(*row), version.resolution_minutes)
        return before, behind


def _remember(known: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    known[key] = value
    if len(known) > MOST_REMEMBERED:
        known.popitem(last=False)
