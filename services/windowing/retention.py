"""Keeps closed windows for as long as the settings say, resolution by resolution: partitions ahead, partitions dropped.

Beside the closing, on a connection of its own. A partition is over by the clock of closing, never by the wall clock: so
a replay of old readings keeps what it closes. It is dropped once nobody has to send its rows any more: the oldest run
that is not delivered, a failed one, too, of whichever job, holds its slot's partition and all later ones, unless it was
given up. A job that begins in the past, or a backfill, either comes first and holds its rows, or finds them dropped and
begins later (`platform/kept_rows.py`). How far rows were dropped, and what is held for whom, stands in
`measurement_retention`.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import structlog

from services.platform.errors import Unavailable
from services.platform.kept_rows import judge_needs
from services.platform.metrics import MEASUREMENT_PARTITIONS_DROPPED, MEASUREMENT_PARTITIONS_HELD
from services.platform.partitions import TimePartition, create_partitions, drop_partitions
from services.platform.postgres import Connection, Pool, transaction, wait_or_stop
from services.windowing.measurement_partitions import partition_of, partitions_named

DAYS_AHEAD = 2
EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 60.0
LOCK_TIMEOUT = timedelta(milliseconds=300)
log = structlog.get_logger()

_CLOSED_UNTIL = "SELECT closed_until FROM window_closed WHERE resolution_minutes = $1"
_PARTITIONS = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = ('measurement_' || $1::integer || 'm')::regclass
"""
# Unfinished runs; failed ones, which somebody may ask for as long as their rows are whole; and the slots that a job has
# not planned yet: its next one, or, before it has one, its first. Runs that were given up hold nothing. Slots inside a
# pause that lasts are skipped and need nothing, and a job that was deleted sends nothing.
_NEEDED = """
SELECT needed_from, job_id
FROM (
    SELECT r.slot_start AS needed_from, r.job_id
    FROM export_run r
    JOIN export_job j USING (job_id)
    JOIN export_job_version v ON v.organization_id = r.organization_id AND v.job_id = r.job_id
                             AND v.version = r.job_version
    LEFT JOIN measurement_retention k USING (resolution_minutes)
    WHERE (r.state IN ('planned', 'frozen')
           OR (r.state = 'failed' AND r.slot_start >= coalesce(k.dropped_until, '-infinity')))
      AND j.deleted_at IS NULL
      AND v.resolution_minutes = $1 AND v.data = 'meters_measurements'
    UNION ALL
    SELECT following.slot_start, j.job_id
    FROM export_job j
    LEFT JOIN export_job_progress p USING (organization_id, job_id)
    CROSS JOIN LATERAL (SELECT coalesce(p.next_slot_start, j.starts_at) AS slot_start) following
    WHERE j.deleted_at IS NULL
      AND EXISTS (
          SELECT FROM (
              SELECT resolution_minutes, data, lead(effective_from, 1, 'infinity') OVER (ORDER BY version) AS until
              FROM export_job_version v WHERE v.organization_id = j.organization_id AND v.job_id = j.job_id
          ) v WHERE v.resolution_minutes = $1 AND v.data = 'meters_measurements' AND v.until > following.slot_start)
      AND NOT EXISTS (
          SELECT FROM export_job_pause w
          WHERE w.organization_id = j.organization_id AND w.job_id = j.job_id AND w.resumed_from IS NULL
            AND w.paused_from <= following.slot_start)
) AS needed
ORDER BY needed_from, job_id LIMIT 1
"""
_RECORD = """
INSERT INTO measurement_retention AS known (resolution_minutes, keep, dropped_until, held_from, held_partitions,
                                            held_by_job_id)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (resolution_minutes) DO UPDATE
SET keep = excluded.keep, dropped_until = greatest(known.dropped_until, excluded.dropped_until),
    held_from = excluded.held_from, held_partitions = excluded.held_partitions,
    held_by_job_id = excluded.held_by_job_id
"""


class Over(NamedTuple):
    """The partitions whose time is over, oldest first: those to drop, and those that a job still needs."""

    to_drop: list[TimePartition]
    held: list[TimePartition]
    held_by_job_id: int | None


def divide(over: list[TimePartition], needed_from: datetime | None, job_id: int | None) -> Over:
    """Divide partitions, which are in the order of time, at the first that is needed: rows go oldest first."""
    free = [part for part in over if needed_from is None or part.end <= needed_from]
    held = over[len(free) :]
    return Over(free, held, job_id if held else None)


class MeasurementKeeper:
    """Makes the partitions to come and drops those that are over. Any number of processes may do so at once."""

    def __init__(
        self, pool: Pool, keep: Mapping[int, timedelta | None], known_partitions: set[str] | None = None
    ) -> None:
        """`keep`: how far the end of a partition must lie behind the closed windows, by resolution; None: for ever.

        `known_partitions`: those that the process need not ask for; those that are made here are added.
        """
        self._pool = pool
        self._keep = keep
        self._known_partitions = set() if known_partitions is None else known_partitions

    async def run(self, stopping: asyncio.Event) -> None:
        """Look every hour until told to stop; what did not work is tried again a minute later."""
        while not stopping.is_set():
            try:
                is_begun = await self.look()
            except (Unavailable, asyncpg.PostgresError) as error:
                log.warning("measurements_not_kept", error=str(error), retry_in_seconds=AGAIN_SECONDS)
                await wait_or_stop(stopping, AGAIN_SECONDS)
            else:
                await wait_or_stop(stopping, EVERY_SECONDS if is_begun else AGAIN_SECONDS)

    async def look(self) -> bool:
        """Make and drop what is due; tell whether any window was closed yet.

        Raises Unavailable where a table is in use or the server away.
        """
        is_begun = False
        for resolution, keep in self._keep.items():
            async with transaction(self._pool) as connection:
                closed_until: datetime | None = await connection.fetchval(_CLOSED_UNTIL, resolution)
            if closed_until is not None:
                is_begun = True
                await self._look_at(resolution, keep, closed_until)
        return is_begun

    async def _look_at(self, resolution: int, keep: timedelta | None, closed_until: datetime) -> None:
        ahead = {partition_of(resolution, closed_until + timedelta(days=days)) for days in range(DAYS_AHEAD + 1)}
        await create_partitions(self._pool, sorted(ahead))
        self._known_partitions.update(part.name for part in ahead)
        while True:
            async with transaction(self._pool) as connection:
                await judge_needs(connection)
                over = await _over(connection, resolution, keep, closed_until)
                # One at a time, each with its mark: locks are short, and what is gone is always said to be gone.
                first = over.to_drop[0] if over.to_drop else None
                await connection.execute(
                    _RECORD,
                    resolution,
                    keep,
                    None if first is None else first.end,
                    over.held[0].start if over.held else None,
                    len(over.held),
                    over.held_by_job_id,
                )
                if first is not None:
                    await drop_partitions(connection, [first], lock_timeout=LOCK_TIMEOUT)
            if first is None:
                break
            MEASUREMENT_PARTITIONS_DROPPED.labels(str(resolution)).inc()
            log.info("measurements_dropped", partition=first.name)
        MEASUREMENT_PARTITIONS_HELD.labels(str(resolution)).set(len(over.held))
        if over.held:
            log.warning(
                "measurements_held",
                first=over.held[0].name,
                partitions=len(over.held),
                job_id=over.held_by_job_id,
                action="runs of this job are not delivered, or failed: recover it, give up what failed, or delete it",
            )


async def _over(connection: Connection, resolution: int, keep: timedelta | None, closed_until: datetime) -> Over:
    if keep is None:
        return Over([], [], None)
    names = [row["relname"] for row in await connection.fetch(_PARTITIONS, resolution)]
    over = [part for part in partitions_named(names) if part.end <= closed_until - keep]
    if not over:
        return Over([], [], None)
    needed = await connection.fetchrow(_NEEDED, resolution)
    return divide(over, *(needed or (None, None)))
