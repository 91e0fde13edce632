"""The accounts' SQL: who may log in, by which password or keys. They are written by services/api's."""

from typing import NamedTuple

from services.platform.postgres import Connection

_FIND = """
SELECT a.user_name, a.organization_id, a.password_hash, a.credentials_version,
       coalesce(array_agg(k.public_key) FILTER (WHERE k.public_key IS NOT NULL), '{}') AS public_keys
FROM dropbox_account a LEFT JOIN dropbox_key k USING (user_name)
WHERE a.user_name = $1 AND a.disabled_at IS NULL
GROUP BY a.user_name
"""
_VERSIONS = """
SELECT user_name, credentials_version FROM dropbox_account WHERE user_name = ANY ($1) AND disabled_at IS NULL
"""
_HAS_ACCOUNT = "SELECT EXISTS (SELECT FROM dropbox_account WHERE organization_id = $1)"


class Account(NamedTuple):
    """What the service needs to let an account in."""

    user_name: str
    organization_id: int
    password_hash: str | None
    credentials_version: int
    public_keys: frozenset[str]


async def find_account(connection: Connection, user_name: str) -> Account | None:
    """Return an account that is not disabled."""
    row = await connection.fetchrow(_FIND, user_name)
    return None if row is None else Account(*row.values())._replace(public_keys=frozenset(row["public_keys"]))


async def versions(connection: Connection, user_names: list[str]) -> dict[str, int]:
    """Return the version of the credentials of those accounts that are not disabled."""
    return {row["user_name"]: row["credentials_version"] for row in await connection.fetch(_VERSIONS, user_names)}


async def has_account(connection: Connection, organization_id: int) -> bool:
    """Tell whether somebody could fetch what is left for an organization."""
    return bool(await connection.fetchval(_HAS_ACCOUNT, organization_id))
