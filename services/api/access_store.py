"""The only SQL that writes clients, users and their sessions."""

from datetime import datetime
from typing import NamedTuple, TypeVar

import asyncpg

from services.api.access import Grant, Role
from services.platform.errors import UserError
from services.platform.postgres import Connection

RowT = TypeVar("RowT")
_CLIENT = "client_id, organization_id, name, role, may_export, site_ids, created_at, revoked_at"
_USER = "user_id, organization_id, email, name, role, may_export, site_ids, created_at, disabled_at"


class Client(NamedTuple):
    """A machine that may use the API."""

    client_id: str
    organization_id: int | None
    name: str
    role: Role
    may_export: bool
    site_ids: list[int] | None
    created_at: datetime
    revoked_at: datetime | None

    @property
    def grant(self) -> Grant:
        """What it may do."""
        return Grant(self.organization_id, self.role, self.may_export, self.site_ids)


class User(NamedTuple):
    """A person."""

    user_id: int
    organization_id: int | None
    email: str
    name: str
    role: Role
    may_export: bool
    site_ids: list[int] | None
    created_at: datetime
    disabled_at: datetime | None

    @property
    def grant(self) -> Grant:
        """What the person may do."""
        return Grant(self.organization_id, self.role, self.may_export, self.site_ids)


async def create_client(
    connection: Connection, client_id: str, name: str, grant: Grant, secret_sha256: bytes, now: datetime
) -> Client:
    """Create a client. Raises UserError for sites that the organization does not have."""
    await check_sites(connection, grant)
    row = await connection.fetchrow(
        f"""
        INSERT INTO api_client (client_id, organization_id, name, secret_sha256, role, may_export, site_ids, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {_CLIENT}
        """,  # noqa: S608 - columns of ours
        *(client_id, grant.organization_id, name, secret_sha256, grant.role, grant.may_export, _sites(grant), now),
    )
    return _one(Client, row)


async def find_client(connection: Connection, client_id: str) -> Client | None:
    """Return the client that may still be used, of whatever organization."""
    row = await connection.fetchrow(
        f"SELECT {_CLIENT} FROM api_client WHERE client_id = $1 AND revoked_at IS NULL",  # noqa: S608
        client_id,
    )
    return None if row is None else Client(*row)


async def client_secret(connection: Connection, client_id: str) -> bytes | None:
    """Return the hash of the secret of a client that may still be used."""
    found: bytes | None = await connection.fetchval(
        "SELECT secret_sha256 FROM api_client WHERE client_id = $1 AND revoked_at IS NULL", client_id
    )
    return found


async def list_clients(
    connection: Connection, organization_id: int | None, after: str = "", limit: int | None = None
) -> list[Client]:
    """Return clients of an organization (None: of the operator) by id, revoked ones too."""
    rows = await connection.fetch(
        f"SELECT {_CLIENT} FROM api_client "  # noqa: S608
        "WHERE organization_id IS NOT DISTINCT FROM $1 AND client_id > $2 ORDER BY client_id LIMIT $3",
        *(organization_id, after, limit),
    )
    return [Client(*row) for row in rows]


async def revoke_client(connection: Connection, client_id: str, now: datetime) -> None:
    """End a client for good: its tokens are refused from now on."""
    await connection.execute(
        "UPDATE api_client SET revoked_at = $2 WHERE client_id = $1 AND revoked_at IS NULL", client_id, now
    )


async def create_user(
    connection: Connection, email: str, name: str, grant: Grant, password_hash: str, now: datetime
) -> User:
    """Create a person. Raises UserError where the address is taken or a site is not the organization's."""
    await check_sites(connection, grant)
    try:
        async with connection.transaction():
            row = await connection.fetchrow(
                f"""
                INSERT INTO user_account (organization_id, email, name, password_hash, role, may_export, site_ids,
                                          created_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {_USER}
                """,  # noqa: S608
                *(grant.organization_id, email, name, password_hash),
                *(grant.role, grant.may_export, _sites(grant), now),
            )
    except asyncpg.UniqueViolationError:
        raise UserError(f"somebody has the address {email} already") from None
    return _one(User, row)


async def edit_user(connection: Connection, user_id: int, name: str, grant: Grant) -> User:
    """Give a person another name and other rights. Raises UserError as above."""
    await check_sites(connection, grant)
    row = await connection.fetchrow(
        f"UPDATE user_account SET name = $2, role = $3, may_export = $4, site_ids = $5 "  # noqa: S608
        f"WHERE user_id = $1 RETURNING {_USER}",
        *(user_id, name, grant.role, grant.may_export, _sites(grant)),
    )
    return _one(User, row)


async def set_password(connection: Connection, user_id: int, password_hash: str, now: datetime) -> None:
    """Give a person another password and end all of their sessions."""
    await connection.execute("UPDATE user_account SET password_hash = $2 WHERE user_id = $1", user_id, password_hash)
    await _end_sessions(connection, user_id, now)


async def disable_user(connection: Connection, user_id: int, now: datetime) -> None:
    """Keep a person out, at once."""
    await connection.execute(
        "UPDATE user_account SET disabled_at = $2 WHERE user_id = $1 AND disabled_at IS NULL", user_id, now
    )
    await _end_sessions(connection, user_id, now)


async def list_users(
    connection: Connection, organization_id: int | None, after: int = 0, limit: int | None = None
) -> list[User]:
    """Return people of an organization (None: operators) by id, disabled ones too."""
    rows = await connection.fetch(
        f"SELECT {_USER} FROM user_account "  # noqa: S608
        "WHERE organization_id IS NOT DISTINCT FROM $1 AND user_id > $2 ORDER BY user_id LIMIT $3",
        *(organization_id, after, limit),
    )
    return [User(*row) for row in rows]


async def find_user(
    connection: Connection, organization_id: int | None, user_id: int, *, lock: bool = False
) -> User | None:
    """Return a person of the organization, disabled or not."""
    row = await connection.fetchrow(
        f"SELECT {_USER} FROM user_account "  # noqa: S608
        f"WHERE organization_id IS NOT DISTINCT FROM $1 AND user_id = $2{' FOR UPDATE' if lock else ''}",
        *(organization_id, user_id),
    )
    return None if row is None else User(*row)


async def user_by_email(connection: Connection, email: str) -> tuple[User, str] | None:
    """Return the person of an address who is not disabled, and the hash of the password."""
    row = await connection.fetchrow(
        f"SELECT {_USER}, password_hash FROM user_account "  # noqa: S608
        "WHERE lower(email) = lower($1) AND disabled_at IS NULL",
        email,
    )
    return None if row is None else (User(*tuple(row)[:-1]), row["password_hash"])


async def start_session(
    connection: Connection, user_id: int, token_sha256: bytes, now: datetime, expires_at: datetime
) -> None:
    """Record that a person logged in."""
    await connection.execute(
        "INSERT INTO user_session (token_sha256, user_id, created_at, expires_at) VALUES ($1, $2, $3, $4)",
        *(token_sha256, user_id, now, expires_at),
    )


async def session_user(connection: Connection, token_sha256: bytes, now: datetime) -> User | None:
    """Return whose session it is, as long as it and the person are good."""
    columns = ", ".join(f"u.{name}" for name in User._fields)
    row = await connection.fetchrow(
        f"SELECT {columns} FROM user_session s JOIN user_account u USING (user_id) "  # noqa: S608
        "WHERE token_sha256 = $1 AND expires_at > $2 AND ended_at IS NULL AND disabled_at IS NULL",
        *(token_sha256, now),
    )
    return None if row is None else User(*row)


async def end_session(connection: Connection, token_sha256: bytes, now: datetime) -> None:
    """Log a person out."""
    await connection.execute(
        "UPDATE user_session SET ended_at = $2 WHERE token_sha256 = $1 AND ended_at IS NULL", token_sha256, now
    )


async def forget_sessions(connection: Connection, before: datetime) -> None:
    """Remove sessions that expired before an instant."""
    await connection.execute("DELETE FROM user_session WHERE expires_at < $1", before)


async def check_sites(connection: Connection, grant: Grant) -> None:
    """Raise UserError where a grant names sites that its organization does not have."""
    if grant.site_ids is None:
        return
    if not grant.site_ids:
        raise UserError("site_ids names no site; leave it out for all of them")
    rows = await connection.fetch(
        "SELECT site_id FROM site WHERE organization_id = $1 AND site_id = ANY($2::int[])",
        *(grant.organization_id, list(grant.site_ids)),
    )
    missing = sorted(set(grant.site_ids) - {row["site_id"] for row in rows})
    if missing:
        raise UserError(f"the organization has no site with the id {', '.join(map(str, missing))}")


async def _end_sessions(connection: Connection, user_id: int, now: datetime) -> None:
    await connection.execute(
        "UPDATE user_session SET ended_at = $2 WHERE user_id = $1 AND ended_at IS NULL", user_id, now
    )


def _sites(grant: Grant) -> list[int] | None:
    return None if grant.site_ids is None else sorted(set(grant.site_ids))


def _one(kind: type[RowT], row: "asyncpg.Record | None") -> RowT:
    if row is None:
        raise RuntimeError("the statement gives a row")
    return kind(*row)
