"""What retention has done with closed windows. Read only; nothing here needs a running windowing."""

from datetime import datetime, timedelta
from typing import NamedTuple

from services.platform.postgres import Connection


class Retention(NamedTuple):
    """One resolution."""

    resolution_minutes: int
    keep: timedelta | None
    """None: for ever."""
    dropped_until: datetime | None
    """The rows of windows that start before this are gone; None: none is."""
    held_from: datetime | None
    """Rows from here on would be dropped, but a job's runs are not delivered; None: no job holds any."""
    held_partitions: int
    held_by_job_id: int | None


async def retentions(connection: Connection) -> dict[int, Retention]:
    """Return what windowing recorded at its last look, by resolution; nothing before the first look."""
    rows = await connection.fetch(
        f"SELECT {', '.join(Retention._fields)} FROM measurement_retention"  # noqa: S608 - columns of ours
    )
    return {row["resolution_minutes"]: Retention(*row) for row in rows}
