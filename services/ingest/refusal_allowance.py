"""An operator's word that refusals are right for a while, so that ingest does not stop at them."""

from datetime import datetime, timedelta

from services.ingest.operator_log import record_action
from services.platform.postgres import Connection


async def allow_refusals(
    connection: Connection, topic: str, duration: timedelta, allowed_by: str, reason: str
) -> datetime:
    """Let refusals of a topic pass for `duration` from now (wall clock) and return its end."""
    until: datetime = await connection.fetchval(
        "INSERT INTO ingest_refusal_allowance (topic, allowed_until, allowed_by, reason) "
        "VALUES ($1, now() + $2::interval, $3, $4) RETURNING allowed_until",
        *(topic, duration, allowed_by, reason),
    )
    details = {"topic": topic, "allowed_until": until, "reason": reason}
    await record_action(connection, allowed_by, "resume_refusing", details)
    return until
