"""Accounts of the hosted folder as a command changes them: every change is recorded with who made it."""

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from services.api import folder_account_store as account_store
from services.api.folder_keys import PublicKey, parse_public_key
from services.cli.operator import operator_name
from services.cli.secret_options import read_secret
from services.ingest.operator_log import record_action
from services.platform.errors import UserError
from services.platform.passwords import check_new_password, generated_password, hash_password
from services.platform.postgres import Connection

GENERATE = "generate"
SOURCES = "generate, prompt, file:PATH or env:VARIABLE"


class NewPassword(NamedTuple):
    """A password that is to be set; `shown` only where it was generated."""

    hashed: str
    shown: str | None


class ReadPassword(NamedTuple):
    """A password that was read, or made up."""

    text: str
    is_generated: bool


def read_password(source: str) -> ReadPassword:
    """Read, ask for, or make up a password. Raises UserError, which never repeats it."""
    if source == GENERATE:
        return ReadPassword(generated_password(), is_generated=True)
    text = _read(source)
    try:
        check_new_password(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    return ReadPassword(text, is_generated=False)


def new_password(source: str) -> NewPassword:
    """Do so, and hash it."""
    read = read_password(source)
    return NewPassword(hash_password(read.text), read.text if read.is_generated else None)


def public_keys(file: Path) -> list[PublicKey]:
    """Return the keys of a file, one a line, as `ssh-keygen` writes it. Raises UserError that names the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text: a public key is one line such as `ssh-ed25519 AAAA… comment`") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if any("PRIVATE KEY" in line for line in lines):
        raise UserError(
            f"{file} holds a private key, which its owner gives to nobody: give the public half, {file}.pub"
        )
    wanted = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and line[0] != "#"]
    if not wanted:
        raise UserError(f"{file} holds no key")
    return [parse_public_key(f"line {number} of {file}", line) for number, line in wanted]


async def known(connection: Connection, user_name: str) -> account_store.ListedAccount:
    """Return an account. Raises UserError where there is none of this name."""
    for account in await account_store.list_accounts(connection, None, user_name):
        return account
    raise UserError(f"there is no account {user_name!r} for the hosted folder; `meterpost dropbox accounts` lists them")


async def add_keys(connection: Connection, user_name: str, keys: Sequence[PublicKey]) -> list[PublicKey]:
    """Authorise keys; return those that were not yet."""
    added = [one for one in keys if await account_store.add_key(connection, user_name, *one)]
    if added:
        await record(connection, "dropbox.add_key", user_name, keys=[one.fingerprint for one in added])
    return added


async def record(connection: Connection, action: str, user_name: str, **details: object) -> None:
    """Record who changed an account."""
    await record_action(connection, operator_name(), action, {"user_name": user_name, **details})


def _read(source: str) -> str:
    kind, _colon, where = source.partition(":")
    if kind in {"env", "file"} and where:
        return read_secret("password", source)
    if source == "prompt":
        return _asked()
    # What was given is not repeated: it may be the password itself.
    raise UserError(
        f"--password takes {SOURCES}; a password itself is never given as an argument, because everybody on this "
        "machine could read it"
    )


def _asked() -> str:
    if not sys.stdin.isatty():
        raise UserError("the password cannot be asked for without a terminal; use generate, file:PATH or env:VARIABLE")
    first = getpass.getpass("password: ")
    if first != getpass.getpass("once more: "):
        raise UserError("the two passwords differ: nothing was changed")
    return first
