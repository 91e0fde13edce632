"""One chunk: the rows of a stretch of windows, as the readings are in one snapshot of each of its statements."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from services.core.registers import DEFAULT_LARGEST_SHARE
from services.core.times import ceil_to
from services.exports.assembling import put_chunk
from services.exports.model import Chunk, Claim, Export
from services.exports.register_lookup import registers_before
from services.exports.rows_sql import (
    KEPT_FROM,
    NEXT_TIME,
    plan_for_the_chunk,
    rows_from_readings,
    rows_from_windows,
)
from services.exports.store import APPLICATION_NAME, ExportStore
from services.platform.clock import Clock
from services.platform.crash_points import crash_point
from services.platform.errors import UserError
from services.platform.objects import ObjectStore
from services.platform.postgres import Connection, Pool, transaction

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)

Feed = Callable[[Chunk], object]
"""Is told of each chunk once it is in the store. It is recorded later, or never: then the step ends with an error."""


def nowhere(_chunk: Chunk) -> None:
    """Feed nothing."""


class NoLongerKeptError(UserError):
    """The versions that were known then are no longer kept."""


class Made(NamedTuple):
    """What a step gave."""

    position: datetime
    row_count: int
    byte_count: int
    computing_seconds: float
    """How long the database was at work on it."""
    is_cancelled: bool = False


def _chunk_at(export: Export, position: datetime) -> tuple[int, datetime]:
    """Return the number of the chunk that begins at a position, and where it ends."""
    wanted, step = export.wanted, timedelta(minutes=export.chunk_minutes)
    number = (position - wanted.start) // step
    return number, min(wanted.start + (number + 1) * step, wanted.end)


class _Span(NamedTuple):
    start: datetime
    end: datetime
    from_readings: bool


class ChunkMaker:
    """Makes chunks. Raises Superseded where the claim is over, Unavailable while a server is away."""

    def __init__(self, pool: Pool, store: ExportStore, objects: ObjectStore, clock: Clock) -> None:
        self._pool = pool
        self._store = store
        self._objects = objects
        self._clock = clock

    async def make_next(self, claim: Claim, export: Export, seconds: float = 0.0, feed: Feed = nowhere) -> Made:
        """Make the next chunk, and further ones until so many seconds have passed.

        They are recorded with where the one after them begins, in one transaction. While a chunk is computed, the one
        before it is put into the store.
        """
        ends = time.monotonic() + seconds
        async with transaction(self._pool) as connection:
            await connection.execute(f"SET LOCAL application_name = '{APPLICATION_NAME}'")
            # Nothing is asked of the database while a chunk is put into a store that may be slow.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10min'")
            if await self._store.own(connection, claim):
                return Made(export.position, 0, 0, 0.0, is_cancelled=True)
            # Retention drops no day while we look at it.
            await connection.execute("LOCK TABLE reading, reading_superseded, measurement IN ACCESS SHARE MODE")
            kept_from: datetime | None = await connection.fetchval(KEPT_FROM)
            position, computing, chunks = export.position, 0.0, list[Chunk]()
            putting: asyncio.Task[Chunk] | None = None
            try:
                while True:
                    began = time.monotonic()
                    number, end = _chunk_at(export, position)
                    row_count, lines = await self._chunk(connection, export, position, end, kept_from)
                    position = end if row_count else await _next_position(connection, export, end)
                    computing += time.monotonic() - began
                    if putting is not None:
                        chunks.append(await putting)
                        feed(chunks[-1])
                        putting = None
                    if row_count:
                        putting = asyncio.create_task(
                            asyncio.to_thread(put_chunk, self._objects, export, number, claim.epoch, lines, row_count)
                        )
                    # Held no longer than until it is in the store.
                    del lines
                    if position >= export.wanted.end or time.monotonic() >= ends:
                        break
                if putting is not None:
                    chunks.append(await putting)
                    feed(chunks[-1])
            except BaseException:
                if putting is not None:
                    await asyncio.gather(putting, return_exceptions=True)
                raise
            crash_point("exports.before_commit")
            await self._store.advance(connection, claim, position, chunks, self._clock.now())
        crash_point("exports.after_commit")
        rows, size = sum(one.row_count for one in chunks), sum(one.byte_count for one in chunks)
        return Made(position, rows, size, computing)

    async def _chunk(
        self, connection: Connection, export: Export, start: datetime, end: datetime, kept_from: datetime | None
    ) -> tuple[int, bytes]:
        """Return how many rows a stretch has, and them as they stand in the file."""
        found = [
            await self._rows(connection, export, span, kept_from) for span in _spans(export, start, end, kept_from)
        ]
        if len(found) == 1:
            return found[0]
        return sum(rows for rows, _lines in found), b"".join(lines for _rows, lines in found)

    async def _rows(
        self, connection: Connection, export: Export, span: _Span, kept_from: datetime | None
    ) -> tuple[int, bytes]:
        """Return how many rows a span has, and them as they stand in the file."""
        plan = plan_for_the_chunk(export.readings_in_window, is_selective=export.is_selective)
        await connection.execute(plan)
        if not span.from_readings:
            return await _fetch(connection, export, span, rows_from_windows(export.format), [])
        is_as_of = export.wanted.known_at is not None
        statement = rows_from_readings(export.format, is_selective=export.is_selective, is_as_of=is_as_of)
        minutes = []
        if export.is_selective:
            minutes = [[span.start + number * _MINUTE for number in range((span.end - span.start) // _MINUTE)]]
        while True:
            attempt = connection.transaction()
            await attempt.start()
            found = await _fetch(connection, export, span, statement, minutes)
            fresh = await _not_looked_up(connection, export)
            if not fresh:
                await attempt.commit()
                return found
            await attempt.rollback()
            # They send registers, and nobody has asked yet what they sent before: the statement is repeated, once for
            # each chunk in which such a meter is met for the first time.
            assert kept_from is not None  # noqa: S101 - there are readings
            registers = await registers_before(
                connection,
                export.wanted.resolution_minutes,
                fresh,
                span.start,
                export.wanted.known_at,
                kept_from,
            )
            await connection.executemany(
                "INSERT INTO manual_export_register VALUES ($1, $2, $3, $4, $5, true) "
                "ON CONFLICT (organization_id, export_id, meter_id) DO UPDATE SET register_value = "
                "excluded.register_value, register_at = excluded.register_at, is_looked_up = true",
                [
                    (*export.key, meter_id, None if one is None else one.value, None if one is None else one.at)
                    for meter_id, one in registers.items()
                ],
            )


async def _fetch(
    connection: Connection, export: Export, span: _Span, statement: str, minutes: list[list[datetime]]
) -> tuple[int, bytes]:
    """Return how many rows there are, and them as they stand in the file."""
    wanted = export.wanted
    share: Decimal = DEFAULT_LARGEST_SHARE
    found = await connection.fetchrow(
        statement,
        wanted.resolution_minutes,
        span.start,
        span.end,
        1,
        None,
        timedelta(0),
        share,
        list(export.meter_ids),
        export.catalog_revision,
        wanted.site_ids,
        wanted.known_at,
        *export.key,
        *minutes,
    )
    assert found is not None  # noqa: S101 - an aggregate always has a row
    return found["row_count"], found["lines"] or b""


async def _not_looked_up(connection: Connection, export: Export) -> list[int]:
    rows = await connection.fetch(
        "SELECT meter_id FROM manual_export_register "
        "WHERE organization_id = $1 AND export_id = $2 AND NOT is_looked_up",
        *export.key,
    )
    return [row["meter_id"] for row in rows]


def _spans(export: Export, start: datetime, end: datetime, kept_from: datetime | None) -> list[_Span]:
    """Tell what of a stretch is computed from readings, and what the closed windows have to stand for.

    Raises NoLongerKeptError where they cannot.
    """
    boundary = end if kept_from is None else min(end, max(start, ceil_to(kept_from, _DAY)))
    if export.wanted.known_at is not None and boundary > start:
        raise NoLongerKeptError(
            f"the readings before {_day(kept_from)} were removed while the export was made, so what was known "
            "then can no longer be said: ask for a later range, or for the newest versions"
        )
    spans = [_Span(start, boundary, from_readings=False), _Span(boundary, end, from_readings=True)]
    return [span for span in spans if span.start < span.end]


def _day(instant: datetime | None) -> str:
    return "now" if instant is None else f"{instant:%Y-%m-%d}"


async def _next_position(connection: Connection, export: Export, end: datetime) -> datetime:
    """Return where the next chunk begins, over the stretch in which nobody has anything."""
    wanted = export.wanted
    if end >= wanted.end:
        return wanted.end
    found: datetime | None = await connection.fetchval(NEXT_TIME, wanted.resolution_minutes, end, wanted.end)
    if found is None:
        return wanted.end
    step = timedelta(minutes=export.chunk_minutes)
    return max(end, wanted.start + (found - wanted.start) // step * step)
