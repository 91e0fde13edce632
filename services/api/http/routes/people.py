"""People: their accounts, and logging in and out."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Annotated, Literal

import msgspec

from services.api import access_store
from services.api.access import SESSION_PREFIX, Grant, check_email, check_password, fingerprint, new_secret, scope_text
from services.api.access_store import User
from services.api.http.call import Call
from services.api.http.decoding import Id, Instant, Name
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import PageQuery, link, page, read_cursor
from services.api.http.problems import Problem, invalid, not_found
from services.platform.errors import UserError
from services.platform.postgres import transaction

TenantRole = Literal["viewer", "admin"]
Password = Annotated[str, msgspec.Meta(min_length=12, max_length=200)]
Email = Annotated[str, msgspec.Meta(min_length=3, max_length=254)]
SiteIds = Annotated[
    list[Id], msgspec.Meta(min_length=1, max_length=1_000, description="Only these sites. null: all of them.")
]


class Caller(msgspec.Struct, frozen=True):
    """Who makes the request."""

    actor: str
    name: str
    organization_id: int | None
    scopes: list[str]
    site_ids: list[int] | None


class UserShown(msgspec.Struct, frozen=True):
    """A person; the password is never shown."""

    user_id: int
    email: str
    name: str
    role: str
    may_export: bool
    site_ids: list[int] | None
    created_at: Instant
    disabled_at: Instant | None


class Users(msgspec.Struct, frozen=True):
    """A page of people."""

    users: list[UserShown]
    next_cursor: str | None


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A person to be admitted."""

    email: Email
    name: Name
    password: Password
    role: TenantRole
    may_export: bool = False
    site_ids: SiteIds | None = None


class UserChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to change; what is left out stays."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    password: Password | msgspec.UnsetType = msgspec.UNSET
    role: TenantRole | msgspec.UnsetType = msgspec.UNSET
    may_export: bool | msgspec.UnsetType = msgspec.UNSET
    site_ids: SiteIds | msgspec.UnsetType | None = msgspec.UNSET


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a person logs in."""

    email: Annotated[str, msgspec.Meta(max_length=254)]
    password: Annotated[str, msgspec.Meta(max_length=200)]


class Session(msgspec.Struct, frozen=True):
    """A session; its token goes into `Authorization: Bearer …` and is shown only here."""

    session_token: str
    expires_at: Instant
    user: UserShown


async def show_caller(call: Call) -> Answer:
    """Show who the token stands for."""
    one = call.caller
    scopes = scope_text(one.scopes).split()
    return Answer(Caller(one.actor, one.name, one.grant.organization_id, scopes, one.site_ids))


async def log_in(call: Call) -> Answer:
    """Begin a session. Holds no connection while the password is checked, which takes tens of milliseconds."""
    given, means = call.body(Login), call.means
    async with transaction(means.pool) as connection:
        found = await access_store.user_by_email(connection, given.email.replace("\0", ""))
    kept = None if found is None else found[1]
    if not await means.passwords.is_right(given.password, kept) or found is None:
        raise Problem("unauthorized", "the e-mail address or the password is wrong")
    token = new_secret(SESSION_PREFIX)
    expires_at = call.now + timedelta(hours=means.settings.session_hours)
    async with transaction(means.pool) as connection:
        await access_store.start_session(connection, found[0].user_id, fingerprint(token), call.now, expires_at)
    return Answer(Session(token, expires_at, _shown(found[0])), 201)


async def log_out(call: Call) -> Answer:
    """End the session that the request is made with."""
    if not call.token.startswith(SESSION_PREFIX):
        raise Problem("conflict", "the request is made with a client's token, which just expires")
    await access_store.end_session(call.connection, fingerprint(call.token), call.now)
    return Answer(None, 204)


async def list_users(call: Call) -> Answer:
    """List people by id."""
    query = call.query(PageQuery)
    [after] = read_cursor(query, [int]) or [0]
    rows = await access_store.list_users(call.connection, call.organization_id, after, query.limit + 1)
    shown, cursor = page(query, rows, lambda one: [one.user_id])
    return Answer(Users([_shown(one) for one in shown], cursor), headers=link(call, cursor))


async def show_user(call: Call) -> Answer:
    """Show a person."""
    return Answer(_shown(await _find(call)))


async def create_user(call: Call) -> Answer:
    """Admit a person."""
    new = call.body(NewUser)
    _check(lambda: check_email(new.email), "email")
    _check(lambda: check_password(new.password), "password")
    grant = Grant(call.organization_id, new.role, new.may_export, new.site_ids)
    hashed = await call.means.passwords.hash(new.password)
    user = _shown(await access_store.create_user(call.connection, new.email, new.name, grant, hashed, call.now))
    await call.audit("user.create", user.user_id, None, user)
    return Answer(user, 201, {"Location": f"/v1/users/{user.user_id}"})


async def edit_user(call: Call) -> Answer:
    """Give a person another name, password or other rights; another password ends their sessions."""
    changes = call.body(UserChanges)
    before = await _find(call, lock=True)
    call.match(_shown(before))
    role = before.role if changes.role is msgspec.UNSET else changes.role
    may_export = before.may_export if changes.may_export is msgspec.UNSET else changes.may_export
    sites: Sequence[int] | None = before.site_ids if changes.site_ids is msgspec.UNSET else changes.site_ids
    name = before.name if changes.name is msgspec.UNSET else changes.name
    grant = Grant(call.organization_id, role, may_export, sites)
    after = await access_store.edit_user(call.connection, before.user_id, name, grant)
    if changes.password is not msgspec.UNSET:
        hashed = await call.means.passwords.hash(changes.password)
        await access_store.set_password(call.connection, before.user_id, hashed, call.now)
        await call.audit("user.password", before.user_id, None, None)
    if _shown(after) != _shown(before):
        await call.audit("user.edit", before.user_id, _shown(before), _shown(after))
    return Answer(_shown(after))


async def disable_user(call: Call) -> Answer:
    """Keep a person out from now on; what they did stays on record."""
    before = await _find(call, lock=True)
    call.match(_shown(before))
    if call.caller.actor == f"user:{before.user_id}":
        raise Problem("conflict", "nobody can disable themselves; let another administrator do it")
    await access_store.disable_user(call.connection, before.user_id, call.now)
    await call.audit("user.disable", before.user_id, _shown(before), None)
    return Answer(None, 204)


async def _find(call: Call, *, lock: bool = False) -> User:
    user_id = call.id("user_id", "user")
    found = await access_store.find_user(call.connection, call.organization_id, user_id, lock=lock)
    if found is None:
        raise not_found(f"user {user_id}")
    return found


def _check(check: Callable[[], object], field: str) -> None:
    try:
        check()
    except UserError as error:
        raise invalid(field, str(error)) from None


def _shown(user: User) -> UserShown:
    return UserShown(
        *(user.user_id, user.email, user.name, user.role, user.may_export, user.site_ids),
        *(user.created_at, user.disabled_at),
    )


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/me", "show_caller", "Who the token stands for, and what they may do"),
        *(show_caller, None, Caller),
        any_caller=True,
    ),
    Endpoint(
        *("POST", "/v1/sessions", "log_in", "Log in"),
        *(log_in, None, Session, 201),
        body=Login,
        body_form="json",
        has_secret=True,
        holds_connection=False,
        is_guessable=True,
        codes=("unauthorized",),
    ),
    Endpoint(
        *("DELETE", "/v1/sessions/current", "log_out", "Log out"),
        *(log_out, None, None, 204),
        any_caller=True,
        codes=("conflict",),
    ),
    Endpoint(
        *("GET", "/v1/users", "list_users", "The people of the organization"),
        *(list_users, "admin", Users),
        query=PageQuery,
        is_whole_organization=True,
    ),
    Endpoint(
        *("POST", "/v1/users", "create_user", "Admit a person"),
        *(create_user, "admin", UserShown, 201),
        body=NewUser,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/users/{user_id}", "show_user", "A person"),
        *(show_user, "admin", UserShown),
        is_whole_organization=True,
        has_etag=True,
    ),
    Endpoint(
        *("PATCH", "/v1/users/{user_id}", "edit_user", "Change a person's name, password or rights"),
        *(edit_user, "admin", UserShown),
        body=UserChanges,
        body_form="json",
        is_whole_organization=True,
        has_etag=True,
    ),
    Endpoint(
        *("DELETE", "/v1/users/{user_id}", "disable_user", "Keep a person out"),
        *(disable_user, "admin", None, 204),
        is_whole_organization=True,
        has_etag=True,
    ),
)
