"""The only SQL that changes who may log in to the hosted folder, and by what. services/dropbox reads it."""

from datetime import datetime
from typing import NamedTuple

from services.platform.postgres import Connection

_LIST = """
SELECT a.user_name, a.organization_id, o.name AS organization_name, a.password_hash IS NOT NULL AS has_password,
       a.disabled_at, a.created_at, a.last_login_at, a.last_login_from
FROM dropbox_account a JOIN organization o USING (organization_id)
WHERE ($1::integer IS NULL OR a.organization_id = $1) AND ($2::text IS NULL OR a.user_name = $2)
ORDER BY o.name, a.user_name COLLATE "C"
"""
_KEYS = """
SELECT user_name, fingerprint, public_key, comment, added_at
FROM dropbox_key WHERE user_name = ANY ($1) ORDER BY user_name, added_at, fingerprint
"""
_ADD = """
INSERT INTO dropbox_account (user_name, organization_id, password_hash) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING true
"""
_REPLACE_HASH = """
UPDATE dropbox_account SET password_hash = $2, credentials_version = credentials_version + 1 WHERE user_name = $1
"""
_ADD_KEY = """
INSERT INTO dropbox_key (user_name, fingerprint, public_key, comment) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING true
"""
_REMOVE_KEY = "DELETE FROM dropbox_key WHERE user_name = $1 AND fingerprint = $2 RETURNING true"
_END_SESSIONS = "UPDATE dropbox_account SET credentials_version = credentials_version + 1 WHERE user_name = $1"
_DISABLE = """
UPDATE dropbox_account SET disabled_at = now(), credentials_version = credentials_version + 1
WHERE user_name = $1 AND disabled_at IS NULL RETURNING true
"""
_ENABLE = (
    "UPDATE dropbox_account SET disabled_at = NULL WHERE user_name = $1 AND disabled_at IS NOT NULL RETURNING true"
)


class Key(NamedTuple):
    """A public key that an account may log in with."""

    user_name: str
    fingerprint: str
    public_key: str
    comment: str
    added_at: datetime


class ListedAccount(NamedTuple):
    """An account as those see it who manage it."""

    user_name: str
    organization_id: int
    organization_name: str
    has_password: bool
    disabled_at: datetime | None
    created_at: datetime
    last_login_at: datetime | None
    last_login_from: str | None


async def list_accounts(
    connection: Connection, organization_id: int | None, user_name: str | None = None
) -> list[ListedAccount]:
    """Return the accounts of an organization, or of all; or the one of this name among them."""
    return [ListedAccount(*row.values()) for row in await connection.fetch(_LIST, organization_id, user_name)]


async def keys_of(connection: Connection, user_names: list[str]) -> list[Key]:
    """Return the keys of some accounts."""
    return [Key(*row.values()) for row in await connection.fetch(_KEYS, user_names)]


async def add_account(connection: Connection, user_name: str, organization_id: int, password_hash: str | None) -> bool:
    """Add an account; False: the name is taken."""
    return bool(await connection.fetchval(_ADD, user_name, organization_id, password_hash))


async def set_password(connection: Connection, user_name: str, password_hash: str | None) -> None:
    """Replace the password, or take it away; sessions that are open are ended."""
    await connection.execute(_REPLACE_HASH, user_name, password_hash)


async def add_key(connection: Connection, user_name: str, fingerprint: str, public_key: str, comment: str) -> bool:
    """Add a key; False: the account has it already."""
    return bool(await connection.fetchval(_ADD_KEY, user_name, fingerprint, public_key, comment))


async def remove_key(connection: Connection, user_name: str, fingerprint: str) -> bool:
    """Take a key away and end the account's sessions; False: the account does not have it."""
    removed = bool(await connection.fetchval(_REMOVE_KEY, user_name, fingerprint))
    if removed:
        await connection.execute(_END_SESSIONS, user_name)
    return removed


async def disable(connection: Connection, user_name: str) -> bool:
    """Let the account in no more and end its sessions; False: it is disabled already."""
    return bool(await connection.fetchval(_DISABLE, user_name))


async def enable(connection: Connection, user_name: str) -> bool:
    """Let the account in again; False: it is not disabled."""
    return bool(await connection.fetchval(_ENABLE, user_name))
