"""Records that the broker removed before they were read: found and recorded by ingest, accepted by an operator.

Ingest never jumps over a gap. Accepting one moves the partition's progress to its end, under a new epoch, in the
transaction that records the decision: so for each partition
records before next_offset = records read + records of accepted gaps, always,
counted from where the log began when ingest first came: what the retention had removed by then was never its own.
"""

from services.ingest.batch import Position
from services.ingest.operator_log import record_action
from services.ingest.progress_queries import Gap
from services.platform.errors import OperatorNeeded, UserError
from services.platform.kafka import Partition
from services.platform.postgres import Connection


class GapFound(OperatorNeeded):
    """The broker's log begins behind what comes next."""

    def __init__(self, partition: Partition, from_offset: int, to_offset: int) -> None:
        where = f"{partition[0]}/{partition[1]}"
        super().__init__(
            f"{where}: offset {from_offset} comes next, but the broker's log begins at {to_offset}: up to "
            f"{to_offset - from_offset} records were removed before they were read. Nothing is skipped without an "
            f"operator's decision, so every process that is given this partition ends, and with the last one all "
            f"ingest: restore them, or accept the loss by "
            f"`meterpost ingest accept-gap {where} --reason TEXT` and start ingest again."
        )
        self.partition = partition
        self.from_offset = from_offset
        self.to_offset = to_offset


def check_log(partition: Partition, position: Position, first_offset: int, end_offset: int) -> None:
    """Raise GapFound or OperatorNeeded where the broker's log does not hold what comes next."""
    if position.next_offset < first_offset:
        raise GapFound(partition, position.next_offset, first_offset)
    if position.next_offset > end_offset:
        raise OperatorNeeded(
            f"{partition[0]}/{partition[1]}: offset {position.next_offset} comes next, but the broker's log ends at "
            f"{end_offset}: the topic was recreated or has lost records. "
            f"Restore it, or declare topics under a new prefix with a new database."
        )


async def record_gap(connection: Connection, found: GapFound) -> None:
    """Keep a gap for the operator; one that is found again may have grown meanwhile."""
    await connection.execute(
        "INSERT INTO ingest_gap AS known (topic, partition, from_offset, to_offset) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (topic, partition, from_offset) DO UPDATE SET to_offset = excluded.to_offset "
        "WHERE known.accepted_at IS NULL",
        *(*found.partition, found.from_offset, found.to_offset),
    )


async def open_gap(connection: Connection, partition: Partition) -> Gap | None:
    """Return the gap that ingest waits at."""
    row = await connection.fetchrow(
        f"SELECT {', '.join(Gap._fields)} FROM ingest_gap WHERE topic = $1 AND partition = $2 "  # noqa: S608 - columns of ours
        "AND accepted_at IS NULL ORDER BY from_offset DESC LIMIT 1",
        *partition,
    )
    return None if row is None else Gap(*row)


async def accept_gap(connection: Connection, gap: Gap, to_offset: int, accepted_by: str, reason: str) -> None:
    """Go on at `to_offset`, where the broker's log begins now. Call it in a transaction of its own.

    Raises UserError, with nothing changed, where ingest does not wait at this gap any longer.
    """
    key = (gap.topic, gap.partition, gap.from_offset)
    moved = await connection.execute(
        "UPDATE ingest_progress SET next_offset = $4, epoch = epoch + 1, updated_at = now() "
        "WHERE topic = $1 AND partition = $2 AND next_offset = $3",
        *(*key, to_offset),
    )
    accepted = await connection.execute(
        "UPDATE ingest_gap SET to_offset = $4, accepted_at = now(), accepted_by = $5, reason = $6 "
        "WHERE topic = $1 AND partition = $2 AND from_offset = $3 AND accepted_at IS NULL",
        *(*key, to_offset, accepted_by, reason),
    )
    if (moved, accepted) != ("UPDATE 1", "UPDATE 1"):
        raise UserError(f"ingest does not wait at offset {gap.from_offset} of {gap.topic}/{gap.partition} any longer")
    details = {"topic": gap.topic, "partition": gap.partition, "from_offset": gap.from_offset, "to_offset": to_offset}
    await record_action(connection, accepted_by, "accept_gap", {**details, "reason": reason})
