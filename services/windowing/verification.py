"""Recomputes closed windows from the readings that were known, and tells where they are not what they must be."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from asyncpg import Record

from services.core.registers import DEFAULT_LARGEST_SHARE
from services.core.times import MICROSECOND, floor_to
from services.platform.errors import UserError
from services.platform.postgres import Connection, Pool, transaction
from services.windowing.closing_sql import PLAN_FOR_THE_RANGE
from services.windowing.verify_sql import (
    BEFORE_OPENING,
    BOUNDS,
    CIRCUMSTANCES,
    CLOSED_ALIKE,
    COUNT_CLOSED,
    DROPPED_UNTIL,
    NEXT_TIME,
    READING_AFTER,
    ROWS_BY_PROOF,
    VERIFY,
    VERIFY_FORCED,
    WINDOW_AFTER,
)

_LONGEST = timedelta(days=31)
_READINGS = 200_000
"""A stretch of windows holds about so many readings at most, or is one window; so memory does not grow."""
_PROOFS = 10_000
"""So many proofs at most are looked at for the end of a stretch of which no readings are kept, however long that is."""


class Difference(NamedTuple):
    """Something that a closed window holds and must not, or must and does not."""

    resolution_minutes: int
    window_start: datetime
    meter_id: int | None
    """None where it concerns the window's proof as a whole."""
    what: str
    """A stable code: row_missing, row_added, row_differs, event_missing, event_added, event_differs, proof_differs,
    proof_missing; rows_differ where only the proof is left to compare the rows with."""
    expected: dict[str, Any] | None
    found: dict[str, Any] | None


class Step(NamedTuple):
    """What one stretch of windows gave."""

    until: datetime
    windows: int
    rows: int
    unverifiable: int
    """Windows whose readings are no longer kept: their rows were compared with their proofs alone."""
    dropped: int
    """Windows whose rows were dropped by retention. Their proofs are still there."""
    differences: list[Difference]
    """The first of them, at most as many as were wanted."""
    difference_count: int


class _Bounds(NamedTuple):
    opened_at: datetime
    closed_until: datetime
    buckets: int
    dropped_until: datetime | None
    readings_from: datetime | None


class _Alike(NamedTuple):
    """Windows of some buckets that start in [start, end) and were closed in the same way."""

    start: datetime
    end: datetime
    buckets: list[int] | None
    """None: all."""
    grace: timedelta
    catalog_revision: int
    register_share: Decimal | None


async def verify(
    pool: Pool, resolution_minutes: int, start: datetime, end: datetime, tell_at_most: int
) -> AsyncIterator[Step]:
    """Verify the closed windows that start in [start, end), the oldest first, stretch by stretch.

    What it costs depends on the readings in the range, hardly on the windows. Nothing is written. Raises UserError
    where nothing has been closed, Unavailable while PostgreSQL is away.
    """
    async with transaction(pool) as connection:
        row = await connection.fetchrow(BOUNDS, resolution_minutes)
    if row is None:
        raise UserError("no window has been closed yet: there is nothing to verify")
    bounds = _Bounds(*row)
    resolution = timedelta(minutes=resolution_minutes)
    start = floor_to(start, resolution)
    if start < bounds.opened_at:
        before = min(bounds.opened_at, end)
        async with transaction(pool) as connection:
            step = await _before_opening(connection, resolution_minutes, start, before, tell_at_most)
        if step.difference_count:
            yield step
        start = bounds.opened_at
    end = min(floor_to(end + resolution - MICROSECOND, resolution), bounds.closed_until)  # windows are whole
    if bounds.dropped_until is not None and start < bounds.dropped_until:
        kept_from = min(bounds.dropped_until, end)
        async with transaction(pool) as connection:
            yield await _dropped(connection, resolution_minutes, start, kept_from)
        start = kept_from
    while start < end:
        # A look ahead as far as a stretch may reach, so that few partitions are locked at once.
        limit = min(end, start + _LONGEST)
        if bounds.readings_from is not None and start < bounds.readings_from:
            limit = min(end, bounds.readings_from)  # on either side of it all windows are alike
        async with transaction(pool) as connection:
            found: datetime | None = await connection.fetchval(NEXT_TIME, resolution_minutes, start, limit)
            if found is None:
                start = limit
                continue
            begins = max(floor_to(found, resolution), start)
            if bounds.readings_from is None or begins < bounds.readings_from:
                after: datetime | None = await connection.fetchval(
                    WINDOW_AFTER, resolution_minutes, begins, limit, _READINGS, _PROOFS
                )
                start = limit if after is None else after
                yield await _by_proof(connection, resolution_minutes, begins, start, bounds.buckets, tell_at_most)
                continue
            beyond: datetime | None = await connection.fetchval(READING_AFTER, begins, limit, _READINGS)
            start = limit if beyond is None else max(floor_to(beyond, resolution), begins + resolution)
            step = await _verify_stretch(connection, resolution_minutes, begins, start, bounds, tell_at_most)
            start = step.until
            yield step


async def _before_opening(
    connection: Connection, resolution: int, start: datetime, end: datetime, tell_at_most: int
) -> Step:
    """Tell what windows hold that were never closed, because closing began after them."""
    rows = await connection.fetch(BEFORE_OPENING, resolution, start, end, tell_at_most)
    told = [
        Difference(resolution, row["window_start"], row["meter_id"], row["what"], None, _read(row["found"]))
        for row in rows
    ]
    return Step(end, 0, 0, 0, 0, told, rows[0]["differences"] if rows else 0)


async def _by_proof(
    connection: Connection, resolution: int, start: datetime, end: datetime, buckets: int, tell_at_most: int
) -> Step:
    """Compare the rows of windows whose readings are no longer kept with what was recorded of them."""
    rows = await connection.fetch(ROWS_BY_PROOF, resolution, start, end, buckets, tell_at_most)
    told = [
        Difference(resolution, row["window_start"], None, row["what"], _read(row["expected"]), _read(row["found"]))
        for row in rows
    ]
    count: int = await connection.fetchval(COUNT_CLOSED, resolution, start, end)
    dropped_until: datetime | None = await connection.fetchval(DROPPED_UNTIL, resolution)
    if dropped_until is not None and start < dropped_until:
        return await _dropped(connection, resolution, start, end)  # while we looked
    return Step(end, 0, 0, count, 0, told, rows[0]["differences"] if rows else 0)


async def _dropped(connection: Connection, resolution: int, start: datetime, end: datetime) -> Step:
    count: int = await connection.fetchval(COUNT_CLOSED, resolution, start, end)
    return Step(end, 0, 0, 0, count, [], 0)


async def _verify_stretch(
    connection: Connection, resolution: int, start: datetime, end: datetime, bounds: _Bounds, tell_at_most: int
) -> Step:
    """Verify a stretch, or what of it was closed with one grace."""
    await connection.execute(PLAN_FOR_THE_RANGE)
    circumstances = await connection.fetchrow(CIRCUMSTANCES, resolution, start, end)
    assert circumstances is not None  # noqa: S101 - a SELECT without FROM always has its row
    end = circumstances["grace_changes"] or end
    told: list[Difference] = []
    rows = count = 0
    windows: int = await connection.fetchval(COUNT_CLOSED, resolution, start, end)
    for alike in await _closed_alike(connection, resolution, start, end, bounds, circumstances):
        found = await connection.fetch(
            VERIFY_FORCED if circumstances["is_forced"] else VERIFY,
            resolution,
            alike.start,
            alike.end,
            bounds.buckets,
            alike.buckets,
            alike.grace,
            alike.register_share,
            alike.catalog_revision,
            tell_at_most,
        )
        windows += found[0]["unproven_windows"]
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
    dropped_until: datetime | None = await connection.fetchval(DROPPED_UNTIL, resolution)
    if dropped_until is not None and start < dropped_until:
        return await _dropped(connection, resolution, start, end)  # while we looked
    told = sorted(told, key=lambda one: (one.window_start, one.meter_id or 0, one.what))[:tell_at_most]
    return Step(end, windows, rows, 0, 0, told, count)


async def _closed_alike(
    connection: Connection, resolution: int, start: datetime, end: datetime, bounds: _Bounds, circumstances: Record
) -> list[_Alike]:
    """Divide a stretch so that each bucket of each window is in exactly one of the parts, with proof or without."""
    minutes = timedelta(minutes=resolution)
    rows = await connection.fetch(CLOSED_ALIKE, resolution, start, end)
    if not rows:
        revision = circumstances["catalog_revision"]
        return [_Alike(start, end, None, circumstances["grace"], revision, DEFAULT_LARGEST_SHARE)]
    begins = {row["segment"]: row["begins"] for row in rows}
    borders = [start, *list(begins.values())[1:], end]
    found = []
    for (_, part), (first, last) in zip(_by_segment(rows), pairwise(borders), strict=True):
        known = {bucket for row in part for bucket in row["buckets"]}
        others = sorted(set(range(bounds.buckets)) - known)
        for number, row in enumerate(part):
            # Buckets of which nothing is recorded go along with the first.
            buckets = sorted(row["buckets"]) + (others if number == 0 else [])
            found.append(
                _Alike(
                    first,
                    last,
                    None if len(buckets) == bounds.buckets else buckets,
                    row["waited"] - minutes,
                    row["catalog_revision"],
                    row["register_share"],
                )
            )
    return found


def _by_segment(rows: list[Record]) -> Iterator[tuple[int, list[Record]]]:
    for segment, part in groupby(rows, key=lambda row: row["segment"]):
        yield segment, list(part)


def _read(text: str | None) -> dict[str, Any] | None:
    """Return a JSON object with its numbers exact."""
    if text is None:
        return None
    read: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return read
