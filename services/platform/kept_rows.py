"""Who may still ask for closed windows, and who drops them: one waits for the other.

Retention drops rows that nobody needs any more, and a job that begins in the past needs rows from then on. Either must
see what the other has done: whoever adds to what is needed says so first, and whoever drops judges what is needed
alone. Both hold their word to the end of the transaction; what they read afterwards is what the other has committed.
"""

from datetime import datetime
from typing import NamedTuple

from services.platform.postgres import Connection

# A catalog is rendered from what is never dropped.
_DROPPED_OF_RUN = """
SELECT v.resolution_minutes, k.dropped_until
FROM export_run r
JOIN export_job_version v ON v.organization_id = r.organization_id AND v.job_id = r.job_id AND v.version = r.job_version
JOIN measurement_retention k USING (resolution_minutes)
WHERE r.organization_id = $1 AND r.job_id = $2 AND r.slot_start = $3 AND v.data = 'meters_measurements'
  AND r.slot_start < k.dropped_until
"""

# One transaction at a time judges what is needed; the number is arbitrary but ours.
_LOCK = 7_316_045


class RowsDropped(NamedTuple):
    """Rows of a run are gone: the windows of its resolution that start before this."""

    resolution_minutes: int
    dropped_until: datetime


async def dropped_of_run(
    connection: Connection, organization_id: int, job_id: int, slot_start: datetime
) -> RowsDropped | None:
    """Return which rows of a run retention has dropped; None: none. Where it must stay so, `need_rows` comes first."""
    row = await connection.fetchrow(_DROPPED_OF_RUN, organization_id, job_id, slot_start)
    return None if row is None else RowsDropped(*row)


async def need_rows(connection: Connection) -> dict[int, datetime]:
    """Let nothing be dropped until the transaction ends; return, by resolution, until where rows were dropped before.

    Waits while somebody drops. Any number may need rows at once.
    """
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK)
    rows = await connection.fetch(
        "SELECT resolution_minutes, dropped_until FROM measurement_retention WHERE dropped_until IS NOT NULL"
    )
    return {row["resolution_minutes"]: row["dropped_until"] for row in rows}


async def judge_needs(connection: Connection) -> None:
    """Let nobody begin to need rows until the transaction ends. Waits for those who are about to."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
