"""The meters' names, kept in memory so that a search need not read them all from the database each time.

Only where to look: what a search gives comes from the database, which judges every meter found here once more. Names
are added to the catalog, never changed, so what is kept stays true, and only what came since is read. A database that
lost its newest commits to a failure may say otherwise, hence everything is read anew now and then.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.platform.postgres import Connection

MOST_FOUND = 1_000
"""Where more meters match, a page of them is found as fast by going through all."""
_MOST_CHARACTERS = 100_000_000
_KEPT_SECONDS = 600.0

# A line break within a name would end its line. Nothing is lost: whoever searches for one is not answered from here.
_NAMES = """
SELECT r.revision, lower($3::text) AS needle, n.*
FROM catalog_revision AS r CROSS JOIN LATERAL (
    SELECT array_agg(meter_id ORDER BY meter_id, valid_from, c.revision) AS meter_ids,
           string_agg(lower(translate(name || ' ' || coalesce(serial_number, ''), E'\\n', ' ')) || E'\\n', ''
                      ORDER BY meter_id, valid_from, c.revision) AS names
    FROM meter JOIN meter_configuration AS c USING (meter_id)
    WHERE organization_id = $1 AND c.revision > $2 AND c.revision <= r.revision AND r.revision > $2
) AS n
"""


class _Kept(NamedTuple):
    """Every name that an organization's meters ever had, in small letters, each with a line break; and whose it is."""

    revision: int
    meter_ids: Sequence[int]
    names: str
    read_at: float

    def find(self, needle: str, after: int) -> list[int] | None:
        """Return the meters beyond `after` of whose lines one holds the needle; None: they are too many."""
        found: set[int] = set()
        line, place = 0, 0
        while (hit := self.names.find(needle, place)) >= 0:
            line += self.names.count("\n", place, hit)
            if self.meter_ids[line] > after:
                found.add(self.meter_ids[line])
                if len(found) > MOST_FOUND:
                    return None
            place = self.names.index("\n", hit)
        return sorted(found)


class MeterNames:
    """The names of the organizations that were searched last."""

    def __init__(self, seconds: Callable[[], float], most_characters: int = _MOST_CHARACTERS) -> None:
        self._seconds = seconds
        self._most = most_characters
        self._kept: OrderedDict[int, _Kept] = OrderedDict()

    async def find(self, connection: Connection, organization_id: int, text: str, after: int) -> list[int] | None:
        """Return, of the meters beyond `after`, at least those of whose name or serial number the text is a part.

        None: they are too many, or it cannot be told here.
        """
        if not text or "\n" in text:
            return None
        kept = self._kept.get(organization_id)
        if kept is not None and self._seconds() - kept.read_at > _KEPT_SECONDS:
            kept = None
        row = await connection.fetchrow(_NAMES, organization_id, -1 if kept is None else kept.revision, text)
        assert row is not None  # noqa: S101 - the catalog always has a revision
        revision, ids, names = row["revision"], row["meter_ids"] or [], row["names"] or ""
        if kept is None:
            kept = _Kept(revision, ids, names, self._seconds())
        elif revision > kept.revision:
            kept = _Kept(revision, [*kept.meter_ids, *ids], kept.names + names, kept.read_at)
        elif revision < kept.revision:
            # The database lost commits, or a request that began later was faster: the next one reads all anew.
            self._kept.pop(organization_id, None)
            return None
        self._keep(organization_id, kept)
        return kept.find(row["needle"], after)

    def _keep(self, organization_id: int, kept: _Kept) -> None:
        self._kept[organization_id] = kept
        self._kept.move_to_end(organization_id)
        while sum(len(one.names) for one in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
