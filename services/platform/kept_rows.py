"""Who may still ask for closed windows, and who drops them: one waits for the other.

Retention drops rows that nobody needs any more, and a job that begins in the past needs rows from then on. Either must
see what the other has done: whoever adds to what is needed says so first, and whoever drops judges what is needed
alone. Both hold their word to the end of the transaction; what they read afterwards is what the other has committed.
"""

from datetime import datetime

from services.platform.postgres import Connection

# One transaction at a time judges what is needed; the number is arbitrary but ours.
_LOCK = 7_316_045


async def need_rows(connection: Connection) -> dict[int, datetime]:
    """Let nothing be dropped until the transaction ends; return, by resolution, until where rows were dropped before.

    Waits while somebody drops. Any number may need rows at once.
    """
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK)
    rows = await connection.fetch(
        "SELECT resolution_minutes, dropped_until FROM measurement_retention WHERE dropped_until IS NOT NULL"
    )
    return {row["resolution_minutes"]: row["dropped_until"] for row in rows}


async def judge_needs(connection: Connection) -> None:
    """Let nobody begin to need rows until the transaction ends. Waits for those who are about to."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
