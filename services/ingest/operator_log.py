"""The record of operators' decisions, written in the transaction that carries the decision out."""

from typing import Any

import msgspec

from services.platform.postgres import Connection


async def record_action(connection: Connection, acted_by: str, action: str, details: dict[str, Any]) -> None:
    """Add to `operator_action`, which nobody can change afterwards."""
    await connection.execute(
        "INSERT INTO operator_action (acted_by, action, details) VALUES ($1, $2, $3::jsonb)",
        acted_by,
        action,
        msgspec.json.encode(details).decode(),
    )
