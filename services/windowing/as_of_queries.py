"""The readings as they were known at an instant, for people: by the fragment that closing itself is made of."""

from datetime import datetime
from typing import NamedTuple

from services.platform.postgres import Connection
from services.windowing.as_of_sql import as_of


class KnownReading(NamedTuple):
    """The version of a reading that counted then, and whether it is the newest still."""

    measured_at: datetime
    meter_id: int
    value: int
    interval_minutes: int
    is_register: bool
    revision: int
    arrived_at: datetime
    is_newest: bool


_IN_RANGE = "measured_at >= $2 AND measured_at < $3 AND meter_id = $4"
_READINGS = f"""
SELECT {", ".join(KnownReading._fields)}
FROM ({as_of("arrived_at <= $1", _IN_RANGE, with_version=True)}) AS known
ORDER BY measured_at
"""  # noqa: S608 - put together from constants
_KEPT_FROM = """
SELECT min((regexp_match(pg_get_expr(relpartbound, oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = 'reading_superseded'::regclass
"""


async def readings_as_of(
    connection: Connection, known_at: datetime, start: datetime, end: datetime, meter_id: int
) -> list[KnownReading]:
    """Return a meter's readings of intervals that start in [start, end), as they were known at `known_at`.

    Of each the newest of the versions that had arrived by then. It answers for as long as versions are kept.
    """
    rows = await connection.fetch(_READINGS, known_at, start, end, meter_id)
    return [KnownReading(*row) for row in rows]


async def versions_kept_from(connection: Connection) -> datetime | None:
    """Return from when on readings and their superseded versions are kept; None: none is."""
    found: datetime | None = await connection.fetchval(_KEPT_FROM)
    return found
