"""The refused readings: finding them, and marking those that were published again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import asyncpg

from services.platform.kafka import Partition
from services.platform.postgres import Connection

# Two replays at once would both send what neither has marked; the number is arbitrary but ours.
_REPLAY_LOCK = 7_316_044


class Rejected(NamedTuple):
    """A refused reading (or whole record, `source_place` -1) without its bytes."""

    topic: str
    partition: int
    source_offset: int
    source_place: int
    arrived_at: datetime
    reason: str
    detail: str
    device_id: str | None
    byte_count: int
    replayed_at: datetime | None
    """When it was published again the last time."""
    replayed_by: str | None

    @property
    def name(self) -> str:
        """What people call it by."""
        return f"{self.topic}/{self.partition}/{self.source_offset}/{self.source_place}"


class Original(NamedTuple):
    """A refused reading with its bytes."""

    rejected: Rejected
    original: bytes


@dataclass(frozen=True, slots=True)
class RejectedFilter:
    """Which refused readings are meant; None and empty mean all."""

    topics: Sequence[str]
    reason: str | None = None
    device_id: str | None = None
    since: datetime | None = None
    """Arrived at or after."""
    until: datetime | None = None
    """Arrived before."""
    only_new: bool = False
    """Leave out what was published again already."""
    arguments: tuple[object, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Put the values in the order of _MATCHES."""
        values = (list(self.topics), self.reason, self.device_id, self.since, self.until, self.only_new)
        object.__setattr__(self, "arguments", values)


_REPLAYED = """
    LEFT JOIN LATERAL (
        SELECT replayed_at, replayed_by FROM rejected_replay
        WHERE topic = r.topic AND partition = r.partition AND source_offset = r.source_offset
          AND source_place = r.source_place
        ORDER BY replayed_at DESC LIMIT 1
    ) AS replay ON true
"""
_FIELDS = (
    "r.topic, r.partition, r.source_offset, r.source_place, r.arrived_at, r.reason, r.detail, r.device_id, "
    "octet_length(r.original) AS byte_count, replay.replayed_at, replay.replayed_by"
)
_MATCHES = """
    r.topic = ANY ($1::text[]) AND ($2::text IS NULL OR r.reason = $2) AND ($3::text IS NULL OR r.device_id = $3)
    AND ($4::timestamptz IS NULL OR r.arrived_at >= $4) AND ($5::timestamptz IS NULL OR r.arrived_at < $5)
    AND NOT ($6::boolean AND replay.replayed_at IS NOT NULL)
"""
_LIST = f"""
    SELECT {_FIELDS} FROM rejected_reading AS r {_REPLAYED} WHERE {_MATCHES}
    ORDER BY r.arrived_at DESC, r.topic, r.partition, r.source_offset DESC, r.source_place LIMIT $7
"""  # noqa: S608 - text of ours
_COUNTS = f"""
    SELECT r.reason, count(*) AS readings FROM rejected_reading AS r {_REPLAYED} WHERE {_MATCHES}
    GROUP BY r.reason ORDER BY readings DESC, r.reason
"""  # noqa: S608 - text of ours
_ONE = f"""
    SELECT {_FIELDS}, r.original FROM rejected_reading AS r {_REPLAYED}
    WHERE r.topic = $1 AND r.partition = $2 AND r.source_offset = $3 AND r.source_place = $4
"""  # noqa: S608 - text of ours
# Records first, readings within them second: what stood in one record is met together.
_PAGE = f"""
    SELECT {_FIELDS}, r.original FROM rejected_reading AS r {_REPLAYED} WHERE {_MATCHES}
      AND r.topic = $7 AND r.partition = $8 AND r.source_offset < $9
      AND (r.source_offset, r.source_place) > ($10::bigint, $11::smallint)
    ORDER BY r.source_offset, r.source_place LIMIT $12
"""  # noqa: S608 - text of ours


async def list_rejected(connection: Connection, wanted: RejectedFilter, limit: int) -> list[Rejected]:
    """Return refused readings, the latest arrivals first."""
    return [Rejected(*row) for row in await connection.fetch(_LIST, *wanted.arguments, limit)]


async def count_rejected(connection: Connection, wanted: RejectedFilter) -> dict[str, int]:
    """Return how many there are of each reason, the most frequent first."""
    return {row["reason"]: row["readings"] for row in await connection.fetch(_COUNTS, *wanted.arguments)}


async def find_rejected(connection: Connection, topic: str, partition: int, offset: int, place: int) -> Original | None:
    """Return one refused reading with its bytes."""
    row = await connection.fetchrow(_ONE, topic, partition, offset, place)
    return None if row is None else _original(row)


async def rejected_page(
    connection: Connection,
    wanted: RejectedFilter,
    partition: Partition,
    *,
    after: tuple[int, int],
    before_offset: int,
    limit: int,
) -> list[Original]:
    """Return the next refused readings of a partition with their bytes, in the order of the log.

    `after` is the (offset, place) of the last one seen; nothing at or behind `before_offset` is returned.
    """
    rows = await connection.fetch(_PAGE, *wanted.arguments, *partition, before_offset, *after, limit)
    return [_original(row) for row in rows]


async def try_replay_lock(connection: Connection) -> bool:
    """Become the one who replays, until the transaction ends; False where somebody else does."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _REPLAY_LOCK))


async def mark_replayed(connection: Connection, replayed: Sequence[Rejected], replayed_by: str) -> None:
    """Note that these were published again."""
    await connection.executemany(
        "INSERT INTO rejected_replay (topic, partition, source_offset, source_place, replayed_by) "
        "VALUES ($1, $2, $3, $4, $5)",
        [(*one[:4], replayed_by) for one in replayed],
    )


def _original(row: asyncpg.Record) -> Original:
    *fields, original = row.values()
    return Original(Rejected(*fields), original)
