"""Recomputes closed windows from the readings that were known, and tells where they are not what they must be."""

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from services.core.readings import SourceTopic
from services.core.registers import DEFAULT_LARGEST_SHARE
from services.core.times import floor_to
from services.platform.errors import UserError
from services.platform.postgres import Connection, Pool, transaction
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from services.windowing.closing_sql import PLAN_FOR_THE_RANGE
from services.windowing.verify_sql import (
    BOUNDS,
    CLOSED_TOGETHER,
    COUNT_CLOSED,
    DROPPED_UNTIL,
    NEXT_TIME,
    READING_AFTER,
    VERIFY,
    WITHOUT_PROOF,
)

_SPAN = timedelta(hours=1)
_LONGEST = timedelta(days=7)
_READINGS = 50_000
"""A stretch is an hour; where readings are sparse, it is as long as it holds about so many."""
_SOURCES = ((READINGS_BRIDGE, SourceTopic.BRIDGE), (READINGS_LOGGER, SourceTopic.LOGGER))


class Difference(NamedTuple):
    """Something that a closed window holds and must not, or must and does not."""

    resolution_minutes: int
    window_start: datetime
    meter_id: int | None
    """None where it concerns the window's proof as a whole."""
    what: str
    """A stable code: row_missing, row_added, row_differs, event_missing, event_added, event_differs, proof_differs,
    proof_missing."""
    expected: dict[str, Any] | None
    found: dict[str, Any] | None


class Step(NamedTuple):
    """What one stretch of windows gave."""

    until: datetime
    windows: int
    rows: int
    unverifiable: int
    """Windows whose readings are no longer kept."""
    dropped: int
    """Windows whose rows were dropped by retention. Their proofs are still there."""
    differences: list[Difference]
    """The first of them, at most as many as were wanted."""
    difference_count: int


class _Bounds(NamedTuple):
    opened_at: datetime
    closed_until: datetime
    waited: timedelta | None
    buckets: int
    dropped_until: datetime | None
    readings_from: datetime | None


async def verify(
    pool: Pool, resolution_minutes: int, start: datetime, end: datetime, tell_at_most: int
) -> AsyncIterator[Step]:
    """Verify the closed windows that start in [start, end), the oldest first, an hour of them or more at a time.

    Nothing is written. Raises UserError where nothing has been closed, Unavailable while PostgreSQL is away.
    """
    async with transaction(pool) as connection:
        row = await connection.fetchrow(BOUNDS, resolution_minutes)
    if row is None:
        raise UserError("no window has been closed yet: there is nothing to verify")
    bounds = _Bounds(*row)
    resolution = timedelta(minutes=resolution_minutes)
    start, end = max(floor_to(start, resolution), bounds.opened_at), min(end, bounds.closed_until)
    if bounds.dropped_until is not None and start < bounds.dropped_until:
        kept_from = min(bounds.dropped_until, end)
        async with transaction(pool) as connection:
            yield await _dropped(connection, resolution_minutes, start, kept_from)
        start = kept_from
    while start < end:
        async with transaction(pool) as connection:
            found: datetime | None = await connection.fetchval(NEXT_TIME, resolution_minutes, start, end)
            if found is None:
                return
            begins = max(floor_to(found, resolution), start)
            limit = end
            if bounds.readings_from is not None and begins < bounds.readings_from:
                limit = min(end, bounds.readings_from)  # on either side of it all windows are alike
            start = await _stretch_end(connection, begins, limit)
            yield await _verify_stretch(connection, resolution_minutes, begins, start, bounds, tell_at_most)


async def _stretch_end(connection: Connection, start: datetime, end: datetime) -> datetime:
    hour = floor_to(start, _SPAN)
    latest = min(hour + _LONGEST, end)
    beyond: datetime | None = await connection.fetchval(READING_AFTER, start, latest, _READINGS)
    return latest if beyond is None else min(max(floor_to(beyond, _SPAN), hour + _SPAN), end)


async def _dropped(connection: Connection, resolution: int, start: datetime, end: datetime) -> Step:
    count: int = await connection.fetchval(COUNT_CLOSED, resolution, start, end)
    return Step(end, 0, 0, 0, count, [], 0)


async def _verify_stretch(
    connection: Connection, resolution: int, start: datetime, end: datetime, bounds: _Bounds, tell_at_most: int
) -> Step:
    if bounds.readings_from is None or start < bounds.readings_from:
        count: int = await connection.fetchval(COUNT_CLOSED, resolution, start, end)
        return Step(end, 0, 0, count, 0, [], 0)
    await connection.execute(PLAN_FOR_THE_RANGE)
    closings = await connection.fetch(CLOSED_TOGETHER, resolution, start, end)
    told: list[Difference] = []
    starts: set[datetime] = set()
    rows = count = 0
    for closing in closings:
        starts.update(closing["starts"])
        found = await connection.fetch(
            VERIFY,
            resolution,
            closing["starts"][0],
            closing["starts"][-1] + timedelta(minutes=resolution),
            bounds.buckets,
            None if len(closing["buckets"]) == bounds.buckets else closing["buckets"],
            closing["waited"] - timedelta(minutes=resolution),
            closing["register_share"],
            json.dumps(_by_source(json.loads(closing["offsets"]))),
            closing["catalog_revision"],
            closing["starts"],
            tell_at_most,
        )
        rows += found[0]["rows"]
        count += found[0]["differences"] or 0
        told += [
            Difference(
                resolution,
                row["window_start"],
                row["meter_id"],
                row["what"],
                _read(row["expected"]),
                _read(row["found"]),
            )
            for row in found
            if row["what"] is not None
        ]
    missing = await _without_proof(connection, resolution, start, end, bounds)
    dropped_until: datetime | None = await connection.fetchval(DROPPED_UNTIL, resolution)
    if dropped_until is not None and start < dropped_until:
        return await _dropped(connection, resolution, start, end)  # while we looked
    starts.update(one.window_start for one in missing)
    told = sorted(told + missing, key=lambda one: (one.window_start, one.meter_id or 0, one.what))[:tell_at_most]
    return Step(end, len(starts), rows, 0, 0, told, count + len(missing))


async def _without_proof(
    connection: Connection, resolution: int, start: datetime, end: datetime, bounds: _Bounds
) -> list[Difference]:
    """Return the windows of which nothing is recorded although they hold something, or should."""
    if bounds.waited is None:
        return []
    rows = await connection.fetch(
        WITHOUT_PROOF,
        resolution,
        start,
        end,
        bounds.buckets,
        None,
        bounds.waited - timedelta(minutes=resolution),
        DEFAULT_LARGEST_SHARE,
    )
    return [
        Difference(
            resolution,
            row["window_start"],
            None,
            "proof_missing",
            {"bucket": row["bucket"], "rows": row["expected"], "first_meters": row["first_meters"]},
            {"bucket": row["bucket"], "rows": row["found"], "first_meters": row["first_meters"]},
        )
        for row in rows
    ]


def _by_source(offsets: dict[str, int]) -> dict[str, int]:
    """Return offsets with the numbers that readings carry instead of the topics' names."""
    numbered = {}
    for name, offset in offsets.items():
        topic, _, partition = name.rpartition("/")
        for ending, source in _SOURCES:
            if topic.endswith(ending):
                numbered[f"{source.value}/{partition}"] = offset
    return numbered


def _read(text: str | None) -> dict[str, Any] | None:
    """Return a JSON object with its numbers exact."""
    if text is None:
        return None
    read: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return read
