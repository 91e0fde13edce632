"""Answers that are kept for whoever repeats a request under the same Idempotency-Key."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from services.platform.postgres import Connection


class Kept(NamedTuple):
    """What was answered."""

    request_sha256: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    is_sealed: bool


async def reserve(
    connection: Connection, caller: str, key: str, request_sha256: bytes, now: datetime, expires_at: datetime
) -> Kept | None:
    """Take the key for this transaction; or return what was answered under it before.

    Blocks while another transaction holds the key, so of two that come at once one answers and the other repeats it.
    """
    await connection.execute(
        "DELETE FROM idempotent_answer WHERE caller = $1 AND idempotency_key = $2 AND expires_at <= $3",
        caller,
        key,
        now,
    )
    is_ours = await connection.fetchval(
        """
        INSERT INTO idempotent_answer (caller, idempotency_key, request_sha256, expires_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT DO NOTHING RETURNING true
        """,
        *(caller, key, request_sha256, expires_at),
    )
    if is_ours:
        return None
    row = await connection.fetchrow(
        "SELECT request_sha256, status, headers, body, is_sealed FROM idempotent_answer "
        "WHERE caller = $1 AND idempotency_key = $2",
        *(caller, key),
    )
    if row is None:  # it expired between the two statements: as if it had never been
        return await reserve(connection, caller, key, request_sha256, now, expires_at)
    return Kept(row["request_sha256"], row["status"], json.loads(row["headers"]), row["body"], row["is_sealed"])


async def keep(
    connection: Connection, caller: str, key: str, status: int, headers: Mapping[str, str], body: bytes, *, sealed: bool
) -> None:
    """Keep the answer under the key that this transaction took."""
    await connection.execute(
        "UPDATE idempotent_answer SET status = $3, headers = $4::jsonb, body = $5, is_sealed = $6 "
        "WHERE caller = $1 AND idempotency_key = $2",
        *(caller, key, status, json.dumps(dict(headers)), body, sealed),
    )


async def forget(connection: Connection, now: datetime) -> None:
    """Remove answers whose time is over."""
    await connection.execute("DELETE FROM idempotent_answer WHERE expires_at <= $1", now)
