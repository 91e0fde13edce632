"""Which organizations' catalogs changed when, so that what is remembered of one outlives the changes of all others.

Runs pin the platform's newest catalog revision, which whoever's change moves on. Of what an organization's rows are
named and expected by, nothing differs between two revisions unless one of its own lies in between.
"""

import asyncio
from bisect import bisect_right
from collections import defaultdict

from services.delivery.model import Run
from services.platform.postgres import Pool, transaction

# Changes, over all organizations; some 40 bytes each.
MOST_REMEMBERED = 200_000

# A meter's site is its own organization's, as are the meters of a device.
_CHANGES = """
SELECT m.organization_id, c.revision FROM meter_configuration c JOIN meter m USING (meter_id)
WHERE c.revision > $1 AND c.revision <= $2
UNION
SELECT s.organization_id, d.revision FROM site_description d JOIN site s USING (site_id)
WHERE d.revision > $1 AND d.revision <= $2
UNION
SELECT v.organization_id, a.revision FROM input_attachment a JOIN device v USING (device_id)
WHERE a.revision > $1 AND a.revision <= $2
UNION
SELECT v.organization_id, b.revision FROM bridge_attachment b JOIN device v USING (device_id)
WHERE b.revision > $1 AND b.revision <= $2
ORDER BY revision
"""


class CatalogChanges:
    """Asks once for each new revision, and remembers: what was changed in a revision is known for ever."""

    def __init__(self, pool: Pool, most_remembered: int = MOST_REMEMBERED) -> None:
        self._pool = pool
        self._most_remembered = most_remembered
        self._asking = asyncio.Lock()
        # The changes that are known are those after the first revision, up to the last.
        self._first: int | None = None
        self._last = 0
        self._changes: dict[int, list[int]] = defaultdict(list)

    async def same_as(self, run: Run) -> int:
        """Return the oldest revision known in which the catalog of the run's organization is as in the one it pinned.

        Raises Unavailable while PostgreSQL is away.
        """
        organization_id, revision = run.job.organization_id, run.catalog_revision
        if self._first is None:
            self._begin(revision)
        if revision > self._last:
            async with self._asking:
                await self._learn(revision)
        if self._first is None or revision < self._first:
            return revision
        changes = self._changes.get(organization_id, [])
        place = bisect_right(changes, revision)
        return changes[place - 1] if place else self._first

    async def _learn(self, revision: int) -> None:
        if revision <= self._last:
            return
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(_CHANGES, self._last, revision)
        if sum(map(len, self._changes.values())) + len(rows) > self._most_remembered:
            self._begin(revision)
            return
        self._last = revision
        for organization_id, changed_in in rows:
            self._changes[organization_id].append(changed_in)

    def _begin(self, revision: int) -> None:
        self._first = self._last = revision
        self._changes.clear()
