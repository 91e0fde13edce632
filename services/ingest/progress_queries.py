"""How far ingest has come, for people and programs. Read only; nothing here needs a running ingest."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from services.platform.kafka import Partition
from services.platform.postgres import Connection


class PartitionProgress(NamedTuple):
    """A partition as the database knows it."""

    topic: str
    partition: int
    next_offset: int
    watermark: datetime | None
    epoch: int
    owner: str
    stored_count: int
    refused_count: int
    recent_stored: int
    recent_refused: int
    updated_at: datetime


class Gap(NamedTuple):
    """Records from `from_offset` to before `to_offset` that the broker removed before they were read."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int
    found_at: datetime
    accepted_at: datetime | None
    accepted_by: str | None
    reason: str | None

    @property
    def records(self) -> int:
        """How many offsets the gap spans; some may never have held a record."""
        return self.to_offset - self.from_offset


class Allowance(NamedTuple):
    """Refusals of a topic are no reason to stop until `allowed_until` (wall clock)."""

    topic: str
    allowed_until: datetime
    allowed_by: str
    reason: str


async def progress_of(connection: Connection, topics: Iterable[str]) -> dict[Partition, PartitionProgress]:
    """Return the progress of the topics' partitions, as far as there is any."""
    rows = await connection.fetch(
        f"SELECT {', '.join(PartitionProgress._fields)} FROM ingest_progress WHERE topic = ANY ($1::text[])",  # noqa: S608 - columns of ours
        list(topics),
    )
    return {(row["topic"], row["partition"]): PartitionProgress(*row) for row in rows}


async def gaps_of(connection: Connection, topics: Iterable[str]) -> list[Gap]:
    """Return all gaps ever found in the topics, in order."""
    rows = await connection.fetch(
        f"SELECT {', '.join(Gap._fields)} FROM ingest_gap WHERE topic = ANY ($1::text[]) "  # noqa: S608 - columns of ours
        "ORDER BY topic, partition, from_offset",
        list(topics),
    )
    return [Gap(*row) for row in rows]


async def allowances_of(connection: Connection, topics: Iterable[str]) -> list[Allowance]:
    """Return the allowances that are in force, the longest of each topic."""
    rows = await connection.fetch(
        "SELECT DISTINCT ON (topic) topic, allowed_until, allowed_by, reason FROM ingest_refusal_allowance "
        "WHERE topic = ANY ($1::text[]) AND allowed_until > now() ORDER BY topic, allowed_until DESC",
        list(topics),
    )
    return [Allowance(*row) for row in rows]
