"""Forgets what was refused long ago, with the marks of its replays, a few rows at a time.

What was counted as refused stays counted: `ingest_progress` keeps the numbers.
"""

from collections.abc import Sequence
from datetime import datetime

import structlog

from services.platform.metrics import INGEST_REJECTED_DROPPED
from services.platform.postgres import Pool, transaction

ROWS_AT_ONCE = 5_000
"""In one transaction, so that none is long."""
log = structlog.get_logger()

_DROP = """
WITH over AS (
    SELECT topic, partition, source_offset, source_place FROM rejected_reading
    WHERE topic = ANY ($1::text[]) AND arrived_at < $2
    ORDER BY arrived_at LIMIT $3
    FOR UPDATE SKIP LOCKED
), replays AS (
    DELETE FROM rejected_replay AS replay USING over
    WHERE (replay.topic, replay.partition, replay.source_offset, replay.source_place)
        = (over.topic, over.partition, over.source_offset, over.source_place)
), dropped AS (
    DELETE FROM rejected_reading AS rejected USING over
    WHERE (rejected.topic, rejected.partition, rejected.source_offset, rejected.source_place)
        = (over.topic, over.partition, over.source_offset, over.source_place)
    RETURNING 1
)
SELECT count(*) FROM dropped
"""


async def drop_rejected(pool: Pool, topics: Sequence[str], before: datetime) -> int:
    """Drop what arrived before an instant; return how much. Any number of processes may do so at once.

    Raises Unavailable; what was dropped until then stays dropped.
    """
    total = 0
    while True:
        async with transaction(pool) as connection:
            count: int = await connection.fetchval(_DROP, topics, before, ROWS_AT_ONCE)
        INGEST_REJECTED_DROPPED.inc(count)
        total += count
        if count < ROWS_AT_ONCE:
            break
    if total:
        log.info("rejected_dropped", readings=total, arrived_before=before.isoformat())
    return total
