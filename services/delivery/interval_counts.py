"""How complete runs are: what was expected is asked of the catalog once for a day, what came is told by the rows."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, time, timedelta
from itertools import accumulate, compress, repeat
from typing import NamedTuple

from services.core.schedule import Slot
from services.delivery.catalog_changes import CatalogChanges
from services.delivery.model import Run, Version
from services.delivery.roster import Roster
from services.platform.postgres import Pool, transaction

# Each takes a connection for as long as an organization's meters are counted: some microseconds each.
ASKED_AT_ONCE = 2
MOST_REMEMBERED = 1_000
# Meters, over all days that are remembered; some 100 bytes each.
MOST_METERS = 200_000

_EXPECTED = """
SELECT begins, ends, intervals_each, array_agg(meter_id)
FROM expected_windows($1, $2, $3, $4, $5, $6) GROUP BY begins, ends, intervals_each
"""


class Intervals(NamedTuple):
    """How complete a run is: intervals that went into its rows, that should have, and meters without any."""

    present: int
    expected: int
    silent_meters: int


class Partial(NamedTuple):
    """A row that lacks intervals, with the numbers that were true when its window was closed."""

    meter: bytes
    present: int
    expected: int


class _Stretch(NamedTuple):
    """Meters (ten digits each) that must report from `begins` to `ends`, so many intervals in each window."""

    begins: datetime
    ends: datetime
    intervals_each: int
    meters: Sequence[bytes]


class Each:
    """How many intervals each meter must have in a window."""

    def __init__(self, by_meter: dict[bytes, int]) -> None:
        self.by_meter = by_meter
        self.roster = Roster(by_meter)
        self._sums: list[int] = [0, *accumulate(map(by_meter.__getitem__, self.roster.meters))]

    def total(self, place: slice) -> int:
        """Return what a stretch of the roster must have."""
        first, end = int(place.start), int(place.stop)
        return self._sums[end] - self._sums[first]


class Expected:
    """What an organization's meters must report in a span, as known at a catalog revision."""

    def __init__(self, stretches: Sequence[_Stretch], resolution_minutes: int) -> None:
        self._stretches = stretches
        self._step = timedelta(minutes=resolution_minutes)
        self._each: dict[tuple[int, ...], Each] = {}
        self.meter_count = sum(len(stretch.meters) for stretch in stretches)

    def each_at(self, at: datetime) -> Each:
        """Return how many intervals the meters must have in the window that starts at `at`."""
        here = tuple(number for number, stretch in enumerate(self._stretches) if stretch.begins <= at < stretch.ends)
        each = self._each.get(here)
        if each is None:
            by_meter: dict[bytes, int] = {}
            for number in here:
                by_meter.update(dict.fromkeys(self._stretches[number].meters, self._stretches[number].intervals_each))
            each = self._each[here] = Each(by_meter)
        return each

    def within(self, slot: Slot) -> tuple[int, set[bytes]]:
        """Return how many intervals the slot's windows must have, and of which meters."""
        intervals, meters = 0, set[bytes]()
        for stretch in self._stretches:
            # The slot's windows start at whole steps from its start on; what begins within one begins with the next.
            first = -((slot.start - max(stretch.begins, slot.start)) // self._step)
            end = -((slot.start - min(stretch.ends, slot.end)) // self._step)
            if end > first:
                intervals += (end - first) * stretch.intervals_each * len(stretch.meters)
                meters.update(stretch.meters)
        return intervals, meters


class Tally:
    """Takes the windows of a run in their order, and counts what came of what was expected."""

    def __init__(self, expected: Expected, slot: Slot) -> None:
        self._expected = expected
        self._slot = slot
        self._present = 0
        self._seen: set[bytes] = set()
        # The same by places in rosters, of which one is enough nearly always.
        self._seen_places: dict[Each, bytearray] = {}
        # Where some meters are silent: most windows have rows of the very meters of the window before.
        self._last: tuple[Sequence[bytes], Each | None, int] = ((), None, 0)

    def add(self, at: datetime, meters: Sequence[bytes], partial: Iterable[Partial]) -> None:
        """Take rows of the window that starts at `at`: of which meters, and which of them lack intervals."""
        each = self._expected.each_at(at)
        place = each.roster.place(meters)
        if place is not None:
            seen = self._seen_places.setdefault(each, bytearray(len(each.roster.meters)))
            seen[place] = b"\1" * len(meters)
            self._present += each.total(place)
        elif each is self._last[1] and meters == self._last[0]:
            self._present += self._last[2]
        else:
            whole = sum(map(each.by_meter.get, meters, repeat(0)))
            self._seen.update(each.by_meter.keys() & meters)
            self._last = meters, each, whole
            self._present += whole
        for meter, present, expected in partial:
            of_it = each.by_meter.get(meter, 0)
            # By the cadence that is known now, and never more in a window than it expects.
            self._present -= of_it - min(present * of_it // expected, of_it)

    def result(self) -> Intervals:
        """Return how complete the run is, once all its rows were taken."""
        expected, meters = self._expected.within(self._slot)
        for each, seen in self._seen_places.items():
            self._seen.update(compress(each.roster.meters, seen))
        return Intervals(self._present, expected, len(meters - self._seen))


class _Key(NamedTuple):
    organization_id: int
    resolution_minutes: int
    start: datetime
    end: datetime
    catalog_revision: int
    site_ids: tuple[int, ...] | None


class IntervalCounts:
    """Asks the catalog, and remembers: what is known at a catalog revision never changes."""

    def __init__(self, pool: Pool, most_meters: int = MOST_METERS, changes: CatalogChanges | None = None) -> None:
        self._pool = pool
        self._changes = changes or CatalogChanges(pool)
        self._most_meters = most_meters
        self._turn = asyncio.Semaphore(ASKED_AT_ONCE)
        self._asked: OrderedDict[_Key, asyncio.Task[Expected]] = OrderedDict()

    async def tally(self, run: Run, version: Version) -> Tally:
        """Return what counts the rows of a run. Raises Unavailable while PostgreSQL is away."""
        sites = None if version.site_ids is None else tuple(version.site_ids)
        # Whole days, as asking costs the same for a minute and for a day.
        start = datetime.combine(run.slot.start.astimezone(UTC), time(), UTC)
        days = -((start - run.slot.end) // timedelta(days=1))
        span = start, start + timedelta(days=days)
        revision = await self._changes.same_as(run)
        key = _Key(run.job.organization_id, version.resolution_minutes, *span, revision, sites)
        asking = self._asked.get(key)
        if asking is None:
            asking = self._asked[key] = asyncio.create_task(self._ask(key))
            asking.add_done_callback(lambda done: self._forget(key, done))
        else:
            self._asked.move_to_end(key)
        # Others may wait for it, too.
        return Tally(await asyncio.shield(asking), run.slot)

    async def _ask(self, key: _Key) -> Expected:
        async with self._turn, transaction(self._pool) as connection:
            # The function's results are many times what is estimated, and meter by meter is the slowest way then.
            await connection.execute("SET LOCAL enable_nestloop = off")
            rows = await connection.fetch(_EXPECTED, *key)
        stretches = []
        for begins, ends, each, meter_ids in rows:
            stretches.append(_Stretch(begins, ends, each, [b"%010d" % meter_id for meter_id in meter_ids]))
        return Expected(stretches, key.resolution_minutes)

    def _forget(self, key: _Key, done: "asyncio.Task[Expected]") -> None:
        """Forget a failure, and the least recently used while too much is remembered."""
        if _has_failed(done) and self._asked.get(key) is done:
            del self._asked[key]
        known = [key for key, task in self._asked.items() if task.done() and not _has_failed(task)]
        meters = sum(self._asked[key].result().meter_count for key in known)
        while len(known) > 1 and (meters > self._most_meters or len(known) > MOST_REMEMBERED):
            meters -= self._asked.pop(known.pop(0)).result().meter_count


def _has_failed(done: "asyncio.Task[Expected]") -> bool:
    return done.cancelled() or done.exception() is not None
