"""How complete runs are: counted once for all jobs of an organization that export the same windows."""

import asyncio
from collections import OrderedDict
from datetime import datetime
from typing import NamedTuple

from services.delivery.model import Run, Version
from services.platform.postgres import Pool, transaction

# Each takes a connection for as long as a run's rows are counted.
COUNTED_AT_ONCE = 2
MOST_REMEMBERED = 1_000

_COUNT = """
SELECT coalesce(sum(intervals_present), 0)::bigint, coalesce(sum(intervals_expected), 0)::bigint,
       count(*) FILTER (WHERE windows_present = 0)
FROM completeness($1, $2, $3, $4, $5, $6)
"""


class Intervals(NamedTuple):
    """How complete a run is: intervals that went into its rows, that should have, and meters without any."""

    present: int
    expected: int
    silent_meters: int


class _Key(NamedTuple):
    organization_id: int
    resolution_minutes: int
    start: datetime
    end: datetime
    catalog_revision: int
    site_ids: tuple[int, ...] | None


class IntervalCounts:
    """Counts, and remembers: closed windows never change, nor what is known at a catalog revision."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._turn = asyncio.Semaphore(COUNTED_AT_ONCE)
        self._counted: OrderedDict[_Key, asyncio.Task[Intervals]] = OrderedDict()

    async def of(self, run: Run, version: Version) -> Intervals:
        """Return how complete a run is. Raises Unavailable while PostgreSQL is away."""
        sites = None if version.site_ids is None else tuple(version.site_ids)
        key = _Key(run.job.organization_id, version.resolution_minutes, *run.slot, run.catalog_revision, sites)
        counting = self._counted.get(key)
        if counting is None:
            counting = self._counted[key] = asyncio.create_task(self._count(key))
            counting.add_done_callback(lambda done: self._forget_failure(key, done))
            if len(self._counted) > MOST_REMEMBERED:
                self._counted.popitem(last=False)
        # Others may wait for it, too.
        return await asyncio.shield(counting)

    async def _count(self, key: _Key) -> Intervals:
        async with self._turn, transaction(self._pool) as connection:
            # The function's results are many times what is estimated, and meter by meter is the slowest way then.
            await connection.execute("SET LOCAL enable_nestloop = off")
            row = await connection.fetchrow(_COUNT, *key)
        if row is None:
            raise RuntimeError("an aggregate always has a row")
        return Intervals(*row)

    def _forget_failure(self, key: _Key, done: "asyncio.Task[Intervals]") -> None:
        if (done.cancelled() or done.exception() is not None) and self._counted.get(key) is done:
            del self._counted[key]
