"""The hosted folder: who may log in to it and by what, and what became of the files. Passwords are never shown."""

from typing import Annotated

import msgspec

from services.api import folder_account_store as store
from services.api.folder_account_store import Key, ListedAccount
from services.api.folder_keys import PublicKey, check_user_name, parse_public_key
from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.endpoint import Answer, Endpoint, Handler
from services.api.http.paging import PageQuery, link, page, read_cursor
from services.api.http.problems import Problem, invalid, not_found
from services.platform.errors import UserError
from services.platform.passwords import MAX_LENGTH, MIN_LENGTH, check_new_password

MAX_KEYS = 20
Password = Annotated[
    str,
    msgspec.Meta(min_length=MIN_LENGTH, max_length=MAX_LENGTH, description="One line of printable characters."),
]
UserName = Annotated[
    str,
    msgspec.Meta(
        max_length=100,
        description="For logging in; unique on the platform. 2 to 64 of a-z, 0-9, `.`, `_` and `-`, not `meterpost…`.",
    ),
]
KeyLine = Annotated[
    str, msgspec.Meta(min_length=1, max_length=20_000, description="As in an id_….pub: `ssh-ed25519 AAAA… comment`.")
]


class FolderKey(msgspec.Struct, frozen=True):
    """A public key that logs in."""

    type: str
    fingerprint: str
    comment: str
    added_at: Instant


class FolderAccount(msgspec.Struct, frozen=True):
    """An account of the organization's hosted folder; all of them see the same files."""

    user_name: str
    has_password: bool
    keys: list[FolderKey]
    disabled_at: Instant | None
    created_at: Instant
    last_login_at: Instant | None
    last_login_from: str | None


class FolderAccounts(msgspec.Struct, frozen=True):
    """A page of accounts by name."""

    accounts: list[FolderAccount]
    next_cursor: str | None


class NewFolderAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An account to be made; it logs in by a password, by keys, or by either."""

    user_name: UserName
    password: Password | None = None
    public_keys: Annotated[list[KeyLine], msgspec.Meta(max_length=MAX_KEYS)] = msgspec.field(default_factory=list)


class PasswordBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The new password; null takes it away, and keys alone log in."""

    password: Password | None


class KeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is to log in, too."""

    public_key: KeyLine


class KeyGone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is not to log in any more."""

    fingerprint: Annotated[str, msgspec.Meta(min_length=1, max_length=200, description="SHA256:….")]


async def list_accounts(call: Call) -> Answer:
    """List accounts by name."""
    query = call.query(PageQuery)
    [after] = read_cursor(query, [str]) or [""]
    every = await store.list_accounts(call.connection, call.organization_id)
    rows = [one for one in every if one.user_name > after][: query.limit + 1]
    found, cursor = page(query, rows, lambda one: [one.user_name])
    keys = await store.keys_of(call.connection, [one.user_name for one in found])
    return Answer(FolderAccounts([_shown(one, keys) for one in found], cursor), headers=link(call, cursor))


async def show_account(call: Call) -> Answer:
    """Show an account."""
    return Answer(await _find(call))


async def new_account(call: Call) -> Answer:
    """Make an account."""
    body = call.body(NewFolderAccount)
    try:
        check_user_name(body.user_name)
    except UserError as error:
        raise invalid("user_name", str(error)) from None
    if body.password is None and not body.public_keys:
        raise Problem("missing_field", "nobody could log in: give a password, public_keys, or both", field="password")
    keys = [_parsed(f"public_keys[{place}]", line) for place, line in enumerate(body.public_keys)]
    hashed = None if body.password is None else await _hashed(call, body.password)
    if not await store.add_account(call.connection, body.user_name, call.organization_id, hashed):
        detail = f"the name {body.user_name} is taken on this platform: choose another"
        raise Problem("conflict", detail, field="user_name")
    for key in keys:
        await store.add_key(call.connection, body.user_name, *key)
    made = await _account(call, body.user_name)
    await call.audit("folder_account.create", body.user_name, None, made)
    return Answer(made, 201, {"Location": f"/v1/folder-accounts/{body.user_name}"})


async def set_password(call: Call) -> Answer:
    """Replace the password, or take it away."""
    password, before = call.body(PasswordBody).password, await _find(call)
    if password is None and not before.keys:
        raise UserError(f"account {before.user_name} has no key: without a password nobody could log in; add one first")
    await store.set_password(
        call.connection, before.user_name, None if password is None else await _hashed(call, password)
    )
    return await _changed(call, before, "folder_account.set_password", is_change=True)


async def add_key(call: Call) -> Answer:
    """Let a key log in."""
    key, before = _parsed("public_key", call.body(KeyBody).public_key), await _find(call)
    if len(before.keys) >= MAX_KEYS:
        raise UserError(f"account {before.user_name} has {MAX_KEYS} keys: take one away first")
    await store.add_key(call.connection, before.user_name, *key)
    return await _changed(call, before, "folder_account.add_key")


async def withdraw_key(call: Call) -> Answer:
    """Let a key log in no more."""
    body, before = call.body(KeyGone), await _find(call)
    if not await store.remove_key(call.connection, before.user_name, body.fingerprint.replace("\0", "")):
        there = ", ".join(key.fingerprint for key in before.keys) or "none"
        raise invalid("fingerprint", f"account {before.user_name} has no such key; its keys: {there}")
    return await _changed(call, before, "folder_account.remove_key")


async def disable(call: Call) -> Answer:
    """Let an account in no more."""
    before = await _find(call)
    await store.disable(call.connection, before.user_name)
    return await _changed(call, before, "folder_account.disable")


async def enable(call: Call) -> Answer:
    """Let an account in again."""
    before = await _find(call)
    await store.enable(call.connection, before.user_name)
    return await _changed(call, before, "folder_account.enable")


async def _find(call: Call) -> FolderAccount:
    return await _account(call, call.path["user_name"].replace("\0", "")[:100])


async def _account(call: Call, user_name: str) -> FolderAccount:
    found = await store.list_accounts(call.connection, call.organization_id, user_name)
    if not found:
        raise not_found(f"account {user_name} of the hosted folder")
    return _shown(found[0], await store.keys_of(call.connection, [user_name]))


async def _changed(call: Call, before: FolderAccount, action: str, *, is_change: bool = False) -> Answer:
    after = await _account(call, before.user_name)
    if is_change or after != before:
        await call.audit(action, before.user_name, before, after)
    return Answer(after)


async def _hashed(call: Call, password: str) -> str:
    try:
        check_new_password(password)
    except ValueError as error:
        raise invalid("password", str(error)) from None
    return await call.means.passwords.hash(password)


def _parsed(field: str, line: str) -> PublicKey:
    try:
        return parse_public_key(field, line.strip())
    except UserError as error:
        raise invalid(field, str(error)) from None


def _shown(one: ListedAccount, keys: list[Key]) -> FolderAccount:
    mine = [
        FolderKey(key.public_key.split(maxsplit=1)[0], key.fingerprint, key.comment, key.added_at)
        for key in keys
        if key.user_name == one.user_name
    ]
    return FolderAccount(
        *(one.user_name, one.has_password, mine, one.disabled_at, one.created_at),
        *(one.last_login_at, one.last_login_from),
    )


def _change(path: str, name: str, summary: str, handler: Handler, body: type[msgspec.Struct] | None = None) -> Endpoint:
    return Endpoint(
        *("POST", f"/v1/folder-accounts/{{user_name}}{path}", name, summary),
        *(handler, "admin", FolderAccount),
        body=body,
        body_form=None if body is None else "json",
        is_whole_organization=True,
        codes=("conflict",),
    )


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/folder-accounts", "list_folder_accounts", "Who may log in to the hosted folder"),
        *(list_accounts, "admin", FolderAccounts),
        query=PageQuery,
        is_whole_organization=True,
    ),
    Endpoint(
        *("POST", "/v1/folder-accounts", "create_folder_account", "Make an account of the hosted folder"),
        *(new_account, "admin", FolderAccount, 201),
        body=NewFolderAccount,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
        codes=("conflict",),
    ),
    Endpoint(
        *("GET", "/v1/folder-accounts/{user_name}", "show_folder_account", "An account of the hosted folder"),
        *(show_account, "admin", FolderAccount),
        is_whole_organization=True,
    ),
    _change("/password", "set_folder_password", "Set its password, or take it away", set_password, PasswordBody),
    _change("/keys", "add_folder_key", "Let a public key log in", add_key, KeyBody),
    _change("/keys/withdraw", "withdraw_folder_key", "Let a public key log in no more", withdraw_key, KeyGone),
    _change("/disable", "disable_folder_account", "Let an account in no more, and end its sessions", disable),
    _change("/enable", "enable_folder_account", "Let an account in again", enable),
)
