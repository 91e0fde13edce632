"""`meterpost api-clients` and `meterpost users`: who may use the HTTP API, for its beginning and for emergencies."""

import secrets
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from services.api import access_store
from services.api.access import (
    SECRET_PREFIX,
    Grant,
    Role,
    check_email,
    check_password,
    fingerprint,
    new_secret,
    scope_text,
)
from services.api.access_store import Client, User
from services.api.audit_store import Change, record
from services.cli.operator import operator_name
from services.cli.session import Session, command, wall_clock
from services.cli.show import Column
from services.platform.errors import UserError
from services.platform.postgres import Connection, transaction

clients = typer.Typer(no_args_is_help=True, help="Machines that may use the HTTP API.")
users = typer.Typer(no_args_is_help=True, help="People who may use the HTTP API.")

_DATABASE = ("organization", "database", "as_json")
_CLIENT_COLUMNS = (
    Column("Client", whole=True),
    Column("Name"),
    Column("Scopes"),
    Column("Sites"),
    Column("Revoked at"),
)
_USER_COLUMNS = (
    *(Column("ID", number=True), Column("E-mail"), Column("Name"), Column("Scopes"), Column("Sites")),
    Column("Disabled at"),
)
NameOption = Annotated[str, typer.Option("--name", metavar="NAME", help="For people.")]
RoleOption = Annotated[
    str, typer.Option("--role", metavar="ROLE", help="viewer, admin, or operator (of the platform, no organization's).")
]
ExportOption = Annotated[bool, typer.Option("--export", help="May also change and run export jobs.")]
SiteOption = Annotated[
    list[int] | None, typer.Option("--site", metavar="ID", help="Only this site; repeat it. Default: all sites.")
]


@command(clients, "create", *_DATABASE)
async def create_client(
    session: Session,
    *,
    name: NameOption,
    role: RoleOption = "viewer",
    export: ExportOption = False,
    site: SiteOption = None,
) -> None:
    """Create a client. Its secret is shown now and never again."""
    client_id, secret = f"mp-{secrets.token_hex(8)}", new_secret(SECRET_PREFIX)
    _check_name(name)
    now = wall_clock().now()
    async with session.pool() as pool, transaction(pool) as connection:
        grant = await _grant(session, connection, role, export, site)
        client = await access_store.create_client(connection, client_id, name, grant, fingerprint(secret), now)
        await _record(connection, grant.organization_id, "client.create", client_id, now, _client_json(client))
    if session.answer.as_json:
        session.answer.json(_client_json(client) | {"client_secret": secret})
        return
    session.answer.facts((("client_id", client_id), ("client_secret", secret), ("scopes", scope_text(grant.scopes))))
    session.answer.note("the secret is not shown again; POST /oauth/token exchanges it for tokens")


@command(clients, "list", *_DATABASE)
async def list_clients(
    session: Session, *, operators: Annotated[bool, typer.Option("--operators", help="The platform's own.")] = False
) -> None:
    """List clients, revoked ones too."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization_id = None if operators else (await session.organization(connection)).organization_id
        found = await access_store.list_clients(connection, organization_id)
    if session.answer.as_json:
        session.answer.json({"clients": [_client_json(one) for one in found]})
        return
    rows = [(one.client_id, one.name, _scopes(one), _sites(one), one.revoked_at) for one in found]
    session.answer.table(_CLIENT_COLUMNS, rows)


@command(clients, "revoke", "database", "as_json")
async def revoke_client(
    session: Session, client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="As `list` shows it.")]
) -> None:
    """Keep a client out from now on; tokens that it has are refused, too."""
    now = wall_clock().now()
    async with session.pool() as pool, transaction(pool) as connection:
        client = await access_store.find_client(connection, client_id)
        if client is None:
            raise UserError(f"there is no client {client_id!r} that could be revoked")
        await access_store.revoke_client(connection, client_id, now)
        await _record(connection, client.organization_id, "client.revoke", client_id, now, None)
    if session.answer.as_json:
        session.answer.json({"client_id": client_id, "revoked": True})
    session.answer.say(f"The client {client_id} ({client.name}) is kept out.")


@command(users, "create", *_DATABASE)
async def create_user(
    session: Session,
    *,
    email: Annotated[str, typer.Option("--email", metavar="ADDRESS", help="What the person logs in with.")],
    name: NameOption,
    password_file: Annotated[
        Path, typer.Option("--password-file", metavar="FILE", help="The password's file, - for standard input.")
    ],
    role: RoleOption = "viewer",
    export: ExportOption = False,
    site: SiteOption = None,
) -> None:
    """Admit a person."""
    from services.api.passwords import Passwords  # noqa: PLC0415 - of no use to any other command

    check_email(email)
    _check_name(name)
    password = _password(password_file)
    now = wall_clock().now()
    async with session.pool() as pool, transaction(pool) as connection:
        grant = await _grant(session, connection, role, export, site)
        hashed = await Passwords().hash(password)
        user = await access_store.create_user(connection, email, name, grant, hashed, now)
        await _record(connection, grant.organization_id, "user.create", user.user_id, now, _user_json(user))
    if session.answer.as_json:
        session.answer.json(_user_json(user))
    session.answer.say(f"{email} is user {user.user_id} and may: {_scopes(user)}.")


@command(users, "list", *_DATABASE)
async def list_users(
    session: Session, *, operators: Annotated[bool, typer.Option("--operators", help="The platform's own.")] = False
) -> None:
    """List people, disabled ones too."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization_id = None if operators else (await session.organization(connection)).organization_id
        found = await access_store.list_users(connection, organization_id)
    if session.answer.as_json:
        session.answer.json({"users": [_user_json(one) for one in found]})
        return
    rows = [(one.user_id, one.email, one.name, _scopes(one), _sites(one), one.disabled_at) for one in found]
    session.answer.table(_USER_COLUMNS, rows)


@command(users, "disable", "database", "as_json")
async def disable_user(session: Session, email: Annotated[str, typer.Argument(metavar="ADDRESS")]) -> None:
    """Keep a person out from now on; sessions that they have end."""
    now = wall_clock().now()
    async with session.pool() as pool, transaction(pool) as connection:
        found = await access_store.user_by_email(connection, email)
        if found is None:
            raise UserError(f"nobody has the address {email!r} who could be disabled")
        user = found[0]
        await access_store.disable_user(connection, user.user_id, now)
        await _record(connection, user.organization_id, "user.disable", user.user_id, now, None)
    if session.answer.as_json:
        session.answer.json({"user_id": user.user_id, "disabled": True})
    session.answer.say(f"{email} is kept out.")


async def _grant(session: Session, connection: Connection, role: str, export: bool, sites: list[int] | None) -> Grant:
    roles: dict[str, Role] = {"viewer": "viewer", "admin": "admin", "operator": "operator"}
    if role not in roles:
        raise UserError(f"there is no role {role!r}; there are: {', '.join(roles)}")
    if role == "operator":
        if export or sites:
            raise UserError("an operator has nothing to do with an organization's sites and jobs")
        return Grant(None, "operator")
    organization = await session.organization(connection)
    return Grant(organization.organization_id, roles[role], export, sites or None)


async def _record(
    connection: Connection,
    organization_id: int | None,
    action: str,
    object_id: str | int,
    now: datetime,
    after: dict[str, object] | None,
) -> None:
    name = operator_name()
    shown = None if after is None else {key: str(value) for key, value in after.items() if value is not None}
    change = Change(organization_id, f"command:{name}", name, action, str(object_id), None, shown)
    await record(connection, change, now)


def _password(file: Path) -> str:
    try:
        text = sys.stdin.readline() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the password cannot be read from {file}: {error}") from None
    password = text.rstrip("\r\n")
    check_password(password)
    return password


def _check_name(name: str) -> None:
    if not 1 <= len(name.strip()) <= 120:
        raise UserError("a name has 1 to 120 characters")


def _scopes(one: Client | User) -> str:
    return scope_text(one.grant.scopes)


def _sites(one: Client | User) -> str:
    return "all" if one.site_ids is None else ", ".join(map(str, one.site_ids))


def _client_json(one: Client) -> dict[str, object]:
    return one._asdict() | {"scopes": _scopes(one)}


def _user_json(one: User) -> dict[str, object]:
    return one._asdict() | {"scopes": _scopes(one)}
