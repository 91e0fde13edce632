"""Where meters' registers stood before a chunk, by the readings that are known: asked once for each meter with any.

The rule is closing's: a meter counts by what its latest windows counted by, and a window with both kinds changes
nothing. So it is walked back to the latest window that had one kind alone.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.registers import Register
from services.core.times import floor_to
from services.platform.postgres import Connection
from services.windowing.as_of_sql import as_of

FARTHEST = timedelta(days=31)
"""Readings farther back are not looked at; the closed windows then tell."""
_FIRST_STEP = timedelta(hours=2)
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)

_IN_RANGE = """measured_at = ANY ($2::timestamptz[]) AND meter_id = ANY ($3::integer[])
    AND measured_at >= $4::timestamptz AND measured_at < $5::timestamptz"""

# $1 resolution, $6 the instant of knowledge.
_WINDOWS = """
SELECT meter_id, date_bin($1::integer * interval '1 minute', measured_at, timestamptz 'epoch') AS window_start,
       bool_or(is_register) AS has_registers, bool_or(NOT is_register) AS has_pulses,
       (array_agg(value ORDER BY ends_at DESC, measured_at DESC) FILTER (WHERE is_register))[1] AS value,
       max(ends_at) FILTER (WHERE is_register) AS at
FROM (SELECT *, measured_at + interval_minutes * interval '1 minute' AS ends_at FROM ({readings}) AS known) AS ended
WHERE interval_minutes <= $1::integer
GROUP BY 1, 2
ORDER BY 1, 2 DESC
"""
_NEWEST = _WINDOWS.format(readings=as_of("$6::timestamptz IS NULL", _IN_RANGE))
_AS_OF = _WINDOWS.format(readings=as_of("arrived_at <= $6::timestamptz", _IN_RANGE))

# The newest closed row of registers before $3, for what lies farther back than readings are kept or looked at.
_CLOSED = """
SELECT meter_id, register_end, register_end_at
FROM unnest($2::integer[]) AS wanted (meter_id)
CROSS JOIN LATERAL (
    SELECT register_end, register_end_at FROM measurement
    WHERE resolution_minutes = $1 AND meter_id = wanted.meter_id AND window_start < $3 AND register_end IS NOT NULL
    ORDER BY window_start DESC LIMIT 1
) AS latest
"""


class _Window(NamedTuple):
    has_registers: bool
    has_pulses: bool
    register: Register | None


async def registers_before(
    connection: Connection,
    resolution_minutes: int,
    meter_ids: Iterable[int],
    before: datetime,
    known_at: datetime | None,
    kept_from: datetime,
) -> dict[int, Register | None]:
    """Return where each meter's registers stood at the end of its latest window that starts before `before`.

    None: it sent pulses then, or nothing is known. Probes the primary key for each minute and meter that it looks at.
    """
    found: dict[int, Register | None] = {}
    wanted = set(meter_ids)
    latest: dict[int, Register | None] = {}
    farthest = max(kept_from, before - FARTHEST)
    step = _FIRST_STEP
    while wanted and before > farthest:
        start = max(farthest, floor_to(before - step, timedelta(minutes=resolution_minutes)))
        for meter_id, windows in (
            await _windows(connection, resolution_minutes, sorted(wanted), start, before, known_at)
        ).items():
            for window in windows:
                latest.setdefault(meter_id, window.register)
                if latest[meter_id] is None:
                    # Newer windows with registers come first; one without any says that the meter sends pulses.
                    found[meter_id] = None
                elif not window.has_pulses:
                    found[meter_id] = latest[meter_id]
                elif not window.has_registers:
                    found[meter_id] = None
                if meter_id in found:
                    wanted.discard(meter_id)
                    break
        before, step = start, _DAY
    if wanted:
        rows = await connection.fetch(_CLOSED, resolution_minutes, sorted(wanted), before)
        closed = {meter_id: Register(at, value) for meter_id, value, at in rows}
        for meter_id in wanted:
            # What came since says where the register stands; that it counts by registers, the closed window says.
            found[meter_id] = (latest.get(meter_id) or closed[meter_id]) if meter_id in closed else None
    return found


async def _windows(
    connection: Connection,
    resolution_minutes: int,
    meter_ids: Sequence[int],
    start: datetime,
    end: datetime,
    known_at: datetime | None,
) -> dict[int, list[_Window]]:
    """Return the windows of each meter that has any, the latest first."""
    minutes = [start + number * _MINUTE for number in range((end - start) // _MINUTE)]
    query = _NEWEST if known_at is None else _AS_OF
    windows: dict[int, list[_Window]] = {}
    for row in await connection.fetch(query, resolution_minutes, minutes, meter_ids, start, end, known_at):
        register = Register(row["at"], row["value"]) if row["has_registers"] else None
        windows.setdefault(row["meter_id"], []).append(_Window(row["has_registers"], row["has_pulses"], register))
    return windows
