"""What a command says of the hosted folder's accounts and files."""

from collections.abc import Mapping
from typing import Any

from services.api.folder_account_store import Key, ListedAccount
from services.api.folder_file_queries import ListedFile
from services.cli.session import Session
from services.cli.show import Column, utc

ACCOUNTS = (
    Column("Account", whole=True),
    Column("Organization"),
    Column("Logs in by"),
    Column("State", whole=True),
    Column("Last login", whole=True),
    Column("From"),
)
FILES = (
    Column("File"),
    Column("Organization"),
    Column("Bytes", number=True),
    Column("Left at", whole=True),
    Column("Fetched", number=True),
    Column("Last fetched", whole=True),
    Column("By"),
    Column("Removed", whole=True),
)


def tell_address(session: Session, place: Mapping[str, Any]) -> None:
    """Say where customers reach the hosted folder, and by what they know it."""
    if session.answer.as_json:
        session.answer.json(place)
    elif place["host"] is None:
        session.answer.say("The operator has not said where the hosted folder is reached.")
    else:
        session.answer.say(f"sftp -P {place['port']} ACCOUNT@{place['host']}")
        for key in place["host_keys"]:
            session.answer.say(f"host key, to compare: {key['type']} {key['fingerprint']}")


def tell_switched(session: Session, user_name: str, state: str, *, changed: bool) -> None:
    """Say that an account is enabled or disabled now."""
    if session.answer.as_json:
        session.answer.json({"user_name": user_name, "state": state, "changed": changed})
    else:
        session.answer.say(
            f"Account {user_name} is {state}."
            if changed
            else f"Nothing changed: account {user_name} is {state} already."
        )


def once(shown: str | None) -> dict[str, Any]:
    """Return a password that was made, which is shown this once."""
    return {} if shown is None else {"generated_password": shown}


def say_once(session: Session, shown: str | None) -> None:
    """Say a password that was made."""
    if shown is not None:
        session.answer.say(f"Its password, shown this once: {shown}")


def account_row(one: ListedAccount, keys: list[Key]) -> tuple[object, ...]:
    """Return an account as a row of the table."""
    mine = [f"key {key.fingerprint} {key.comment}".rstrip() for key in keys if key.user_name == one.user_name]
    return (
        one.user_name,
        one.organization_name,
        "\n".join([*(["password"] if one.has_password else []), *mine]) or "nothing",
        "active" if one.disabled_at is None else f"disabled since {utc(one.disabled_at)}",
        one.last_login_at,
        one.last_login_from,
    )


def file_row(one: ListedFile) -> tuple[object, ...]:
    """Return a file as a row of the table."""
    return (
        one.file_name,
        one.organization_name,
        one.size_bytes,
        one.deposited_at,
        one.fetch_count,
        one.last_fetched_at,
        one.last_fetched_by,
        None if one.removed_at is None else f"by {one.removed_by}",
    )
