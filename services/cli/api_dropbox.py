"""`meterpost --url … dropbox`: what the same commands do over the HTTP API, for the client's own organization."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from services.cli import dropbox_accounts, dropbox_texts
from services.cli.api_session import Api
from services.cli.session import Session
from services.cli.show import utc
from services.core.times import parse_instant

_PATH = "/v1/folder-accounts"


async def accounts(session: Session, api: Api) -> None:
    """List the accounts, with their keys."""
    found = await api.pages(_PATH, "accounts")
    if session.answer.as_json:
        session.answer.json({"accounts": found})
    elif not found:
        session.answer.say("The hosted folder has no account yet: `meterpost dropbox add --help`")
    else:
        name = (await api.get("/v1/me"))["organization_name"]
        session.answer.table(dropbox_texts.ACCOUNTS, [_account_row(one, name) for one in found])


async def address(session: Session, api: Api) -> None:
    """Tell where the hosted folder is."""
    dropbox_texts.tell_address(session, await api.get("/v1/hosted-folder"))


async def add(session: Session, api: Api, user_name: str, *, password: str | None, key_file: Path | None) -> None:
    """Make an account."""
    keys = [] if key_file is None else dropbox_accounts.public_keys(key_file)
    read = dropbox_accounts.read_password(password or dropbox_accounts.GENERATE) if password or not keys else None
    lines = [f"{key.line} {key.comment}".rstrip() for key in keys]
    body = {"user_name": user_name, "password": None if read is None else read.text, "public_keys": lines}
    made = await api.send("POST", _PATH, body)
    shown = read.text if read is not None and read.is_generated else None
    if session.answer.as_json:
        session.answer.json(made | dropbox_texts.once(shown))
        return
    session.answer.say(f"Account {user_name} may fetch what is left for the organization.")
    dropbox_texts.say_once(session, shown)
    for key in made["keys"]:
        session.answer.say(f"It logs in by key {key['fingerprint']} {key['comment']}".rstrip())


async def set_password(session: Session, api: Api, user_name: str, *, password: str, none: bool) -> None:
    """Replace an account's password."""
    read = None if none else dropbox_accounts.read_password(password)
    body = {"password": None if read is None else read.text}
    made = await api.send("POST", f"{_PATH}/{quote(user_name, safe='')}/password", body)
    shown = read.text if read is not None and read.is_generated else None
    if session.answer.as_json:
        session.answer.json({"user_name": user_name, "has_password": made["has_password"]} | dropbox_texts.once(shown))
        return
    session.answer.say(f"Account {user_name} logs in by key only." if none else f"Account {user_name}: password set.")
    dropbox_texts.say_once(session, shown)


async def add_key(session: Session, api: Api, user_name: str, file: Path) -> None:
    """Let an account log in by public keys."""
    keys = dropbox_accounts.public_keys(file)
    path = f"{_PATH}/{quote(user_name, safe='')}"
    before = {key["fingerprint"] for key in (await api.get(path))["keys"]}
    for key in keys:
        await api.send("POST", f"{path}/keys", {"public_key": f"{key.line} {key.comment}".rstrip()})
    if session.answer.as_json:
        added = [key.fingerprint for key in keys if key.fingerprint not in before]
        session.answer.json({"user_name": user_name, "added": added})
        return
    for key in keys:
        state = "could log in before by" if key.fingerprint in before else "may log in by"
        session.answer.say(f"Account {user_name} {state} key {key.fingerprint} {key.comment}".rstrip())


async def remove_key(session: Session, api: Api, user_name: str, fingerprint: str) -> None:
    """Take a key away."""
    await api.send("POST", f"{_PATH}/{quote(user_name, safe='')}/keys/withdraw", {"fingerprint": fingerprint})
    if session.answer.as_json:
        session.answer.json({"user_name": user_name, "removed": fingerprint})
    else:
        session.answer.say(f"Account {user_name} can no longer log in by key {fingerprint}.")


async def disable(session: Session, api: Api, user_name: str) -> None:
    """Let an account in no more."""
    await _switch(session, api, user_name, "disable")


async def enable(session: Session, api: Api, user_name: str) -> None:
    """Let an account in again."""
    await _switch(session, api, user_name, "enable")


async def files(session: Session, api: Api, *, all_: bool, unfetched: bool, limit: int) -> None:
    """List files."""
    query = {"removed": str(all_).lower(), "unfetched": str(unfetched).lower()}
    found = await api.pages("/v1/folder-files", "files", limit or None, **query)
    if session.answer.as_json:
        session.answer.json({"files": found})
        return
    if not found:
        session.answer.say("No file matches.")
        return
    name = (await api.get("/v1/me"))["organization_name"]
    session.answer.table(dropbox_texts.FILES, [_file_row(one, name) for one in found])
    if len(found) == limit:
        session.answer.note(f"the newest {limit:,} are shown; --limit 0 shows all")


async def _switch(session: Session, api: Api, user_name: str, what: str) -> None:
    path = f"{_PATH}/{quote(user_name, safe='')}"
    before = await api.get(path)
    after = await api.send("POST", f"{path}/{what}")
    changed = (before["disabled_at"] is None) != (after["disabled_at"] is None)
    dropbox_texts.tell_switched(session, user_name, f"{what}d", changed=changed)


def _account_row(one: dict[str, Any], organization: str) -> tuple[object, ...]:
    keys = [f"key {key['fingerprint']} {key['comment']}".rstrip() for key in one["keys"]]
    disabled = one["disabled_at"]
    return (
        one["user_name"],
        organization,
        "\n".join([*(["password"] if one["has_password"] else []), *keys]) or "nothing",
        "active" if disabled is None else f"disabled since {utc(parse_instant(disabled))}",
        None if one["last_login_at"] is None else parse_instant(one["last_login_at"]),
        one["last_login_from"],
    )


def _file_row(one: dict[str, Any], organization: str) -> tuple[object, ...]:
    fetched = one["last_fetched_at"]
    return (
        one["file_name"],
        organization,
        one["bytes"],
        parse_instant(one["left_at"]),
        one["fetch_count"],
        None if fetched is None else parse_instant(fetched),
        one["last_fetched_by"],
        None if one["removed_at"] is None else f"by {one['removed_by']}",
    )
