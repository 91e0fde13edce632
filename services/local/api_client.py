"""A client of the demo organization, for whoever wants to try the HTTP API."""

import json
import secrets
from datetime import datetime
from pathlib import Path

from services.api.access import SECRET_PREFIX, Grant, fingerprint, new_secret
from services.api.access_store import client_secret, create_client
from services.local.demo_catalog import ORGANIZATION
from services.platform.postgres import Pool, transaction


async def ensure_api_client(pool: Pool, file: Path, now: datetime) -> Path:
    """Create the client unless the file names one that is good; return the file, which only its owner may read."""
    async with transaction(pool) as connection:
        kept = _kept(file)
        if kept and await client_secret(connection, kept["client_id"]) == fingerprint(kept["client_secret"]):
            return file
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        client_id, secret = f"mp-{secrets.token_hex(8)}", new_secret(SECRET_PREFIX)
        grant = Grant(organization_id, "admin", may_export=True)
        await create_client(connection, client_id, "The demo's", grant, fingerprint(secret), now)
    _keep(file, {"client_id": client_id, "client_secret": secret})
    return file


def _kept(file: Path) -> dict[str, str] | None:
    found: dict[str, str] | None = json.loads(file.read_text(encoding="ascii")) if file.exists() else None
    return found


def _keep(file: Path, client: dict[str, str]) -> None:
    partial = file.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(client) + "\n", encoding="ascii")
    partial.replace(file)
