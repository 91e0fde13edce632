"""One chunk: the rows of a stretch of windows, as the readings are in one snapshot of each of its statements."""

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from services.core.registers import DEFAULT_LARGEST_SHARE
from services.core.times import ceil_to
from services.exports.assembling import put_chunk
from services.exports.model import Claim, Export
from services.exports.register_lookup import registers_before
from services.exports.rows_sql import (
    DELIMITERS,
    KEPT_FROM,
    NEXT_TIME,
    PLAN_FOR_THE_CHUNK,
    QUOTES,
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


class NoLongerKeptError(UserError):
    """The versions that were known then are no longer kept."""


class Made(NamedTuple):
    """What a step gave."""

    position: datetime
    row_count: int
    byte_count: int
    is_cancelled: bool = False


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

    async def make_next(self, claim: Claim, export: Export) -> Made:
        """Make the next chunk, and record it with where the one after it begins, in one transaction."""
        wanted = export.wanted
        step = timedelta(minutes=export.chunk_minutes)
        number = (export.position - wanted.start) // step
        end = min(wanted.start + (number + 1) * step, wanted.end)
        async with transaction(self._pool) as connection:
            await connection.execute(f"SET LOCAL application_name = '{APPLICATION_NAME}'")
            if await self._store.own(connection, claim):
                return Made(export.position, 0, 0, is_cancelled=True)
            # Retention drops no day while we look at it.
            await connection.execute("LOCK TABLE reading, reading_superseded, measurement IN ACCESS SHARE MODE")
            kept_from: datetime | None = await connection.fetchval(KEPT_FROM)
            lines = bytearray()
            row_count = 0
            for span in _spans(export, export.position, end, kept_from):
                row_count += await self._rows(connection, export, span, kept_from, lines)
            position = end if row_count else await _next_position(connection, export, end, step)
            made = None
            if row_count:
                content = bytes(lines)
                lines.clear()
                made = await asyncio.to_thread(
                    put_chunk, self._objects, export, number, claim.epoch, content, row_count
                )
                crash_point("exports.before_commit")
            await self._store.advance(connection, claim, position, made, self._clock.now())
        crash_point("exports.after_commit")
        return Made(position, row_count, 0 if made is None else made.byte_count)

    async def _rows(
        self, connection: Connection, export: Export, span: _Span, kept_from: datetime | None, lines: bytearray
    ) -> int:
        """Add the rows of a span and return how many there are."""
        await connection.execute(PLAN_FOR_THE_CHUNK)
        if not span.from_readings:
            return await _copy(connection, export, span, lines, rows_from_windows(export.format), [])
        is_as_of = export.wanted.known_at is not None
        statement = rows_from_readings(export.format, is_selective=export.is_selective, is_as_of=is_as_of)
        minutes = []
        if export.is_selective:
            minutes = [[span.start + number * _MINUTE for number in range((span.end - span.start) // _MINUTE)]]
        before = len(lines)
        while True:
            attempt = connection.transaction()
            await attempt.start()
            count = await _copy(connection, export, span, lines, statement, minutes)
            fresh = await _not_looked_up(connection, export)
            if not fresh:
                await attempt.commit()
                return count
            await attempt.rollback()
            # They send registers, and nobody has asked yet what they sent before: the statement is repeated, once for
            # each chunk in which such a meter is met for the first time.
            del lines[before:]
            assert kept_from is not None  # noqa: S101 - there are readings
            found = await registers_before(
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
                    for meter_id, one in found.items()
                ],
            )


async def _copy(
    connection: Connection, export: Export, span: _Span, lines: bytearray, statement: str, minutes: list[list[datetime]]
) -> int:
    async def take(data: bytes) -> None:
        lines.extend(data)

    wanted = export.wanted
    share: Decimal = DEFAULT_LARGEST_SHARE
    done = await connection.copy_from_query(
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
        output=take,
        format="csv",
        delimiter=DELIMITERS[export.format],
        quote=QUOTES[export.format],
    )
    return int(done.split()[-1])


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


async def _next_position(connection: Connection, export: Export, end: datetime, step: timedelta) -> datetime:
    """Return where the next chunk begins, over the stretch in which nobody has anything."""
    wanted = export.wanted
    if end >= wanted.end:
        return wanted.end
    found: datetime | None = await connection.fetchval(NEXT_TIME, wanted.resolution_minutes, end, wanted.end)
    if found is None:
        return wanted.end
    return max(end, wanted.start + (found - wanted.start) // step * step)
