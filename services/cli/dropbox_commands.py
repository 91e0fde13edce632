"""`meterpost dropbox`: who may log in to the hosted folder, and what was fetched from it."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from services.api import folder_account_store as account_store
from services.api import folder_file_queries as file_store
from services.api.folder_keys import check_user_name
from services.cli import api_dropbox, dropbox_accounts, dropbox_texts
from services.cli.session import Session, command
from services.core.file_transfer import fingerprint
from services.platform.errors import UserError
from services.platform.postgres import Connection, transaction

app = typer.Typer(no_args_is_help=True, help="The hosted SFTP folder: accounts, keys, and what was fetched.")

User = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's name, as `dropbox accounts` lists it.")]
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="Public keys, one a line: the customer's id_….pub.")]


@command(app, "accounts", "organization", "database", "as_json", over_api=api_dropbox.accounts)
async def accounts(session: Session) -> None:
    """List the accounts, with their keys: of all organizations, or of one."""
    async with session.pool() as pool, transaction(pool) as connection:
        found = await account_store.list_accounts(connection, await _organization_id(session, connection))
        keys = await account_store.keys_of(connection, [one.user_name for one in found])
    if session.answer.as_json:
        listed = [
            one._asdict() | {"keys": [key._asdict() for key in keys if key.user_name == one.user_name]} for one in found
        ]
        session.answer.json({"accounts": listed})
    elif not found:
        session.answer.say("The hosted folder has no account yet: `meterpost dropbox add --help`")
    else:
        session.answer.table(dropbox_texts.ACCOUNTS, [dropbox_texts.account_row(one, keys) for one in found])


@command(app, "address", "as_json", over_api=api_dropbox.address)
async def address(session: Session) -> None:
    """Tell where customers reach the hosted folder, and the fingerprints that they compare."""
    place: dict[str, Any] = {"host": None, "port": None, "host_keys": []}
    found = session.places.hosted_address()
    if found is not None:
        lines = await asyncio.to_thread(found.host_keys)
        keys = [{"type": line.split()[0], "fingerprint": fingerprint(line), "public_key": line} for line in lines]
        place = {"host": found.host, "port": found.port, "host_keys": keys}
    dropbox_texts.tell_address(session, place)


@command(app, "add", "organization", "database", "as_json", over_api=api_dropbox.add)
async def add(
    session: Session,
    user_name: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its name, for logging in.")],
    *,
    password: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help=f"{dropbox_accounts.SOURCES}. Default: generate, or none where --key-file is given.",
            show_default=False,
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public keys, one a line.", show_default=False)
    ] = None,
) -> None:
    """Give an organization an account for its hosted folder.

    Example: meterpost dropbox add acme --organization "Acme Ltd" --key-file acme.pub
    """
    check_user_name(user_name)
    keys = [] if key_file is None else dropbox_accounts.public_keys(key_file)
    new = dropbox_accounts.new_password(password or dropbox_accounts.GENERATE) if password or not keys else None
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        hashed = None if new is None else new.hashed
        if not await account_store.add_account(connection, user_name, organization.organization_id, hashed):
            raise UserError(f"there is an account {user_name!r} already: names are unique over all organizations")
        await dropbox_accounts.record(
            connection, "dropbox.add", user_name, organization_id=organization.organization_id
        )
        await dropbox_accounts.add_keys(connection, user_name, keys)
    shown = None if new is None else new.shown
    if session.answer.as_json:
        fingerprints = [key.fingerprint for key in keys]
        answer = {"user_name": user_name, "organization_id": organization.organization_id, "keys": fingerprints}
        session.answer.json(answer | dropbox_texts.once(shown))
        return
    session.answer.say(f"Account {user_name} may fetch what is left for {organization.name}.")
    dropbox_texts.say_once(session, shown)
    for key in keys:
        session.answer.say(f"It logs in by key {key.fingerprint} {key.comment}".rstrip())


@command(app, "set-password", "database", "as_json", over_api=api_dropbox.set_password)
async def set_password(
    session: Session,
    user_name: User,
    *,
    password: Annotated[str, typer.Option(metavar="SOURCE", help=dropbox_accounts.SOURCES)] = dropbox_accounts.GENERATE,
    none: Annotated[bool, typer.Option("--none", help="Take the password away: keys only.")] = False,
) -> None:
    """Replace an account's password. Sessions that are open are ended."""
    new = None if none else dropbox_accounts.new_password(password)
    async with session.pool() as pool, transaction(pool) as connection:
        await dropbox_accounts.known(connection, user_name)
        if new is None and not await account_store.keys_of(connection, [user_name]):
            raise UserError(f"account {user_name} has no key: without a password nobody could log in; add a key first")
        await account_store.set_password(connection, user_name, None if new is None else new.hashed)
        await dropbox_accounts.record(connection, "dropbox.set_password", user_name, has_password=new is not None)
    shown = None if new is None else new.shown
    if session.answer.as_json:
        session.answer.json({"user_name": user_name, "has_password": new is not None} | dropbox_texts.once(shown))
        return
    session.answer.say(f"Account {user_name} logs in by key only." if none else f"Account {user_name}: password set.")
    dropbox_texts.say_once(session, shown)


@command(app, "add-key", "database", "as_json", over_api=api_dropbox.add_key)
async def add_key(session: Session, user_name: User, file: KeyFile) -> None:
    """Let an account log in by public keys, beside those that it has."""
    keys = dropbox_accounts.public_keys(file)
    async with session.pool() as pool, transaction(pool) as connection:
        await dropbox_accounts.known(connection, user_name)
        added = await dropbox_accounts.add_keys(connection, user_name, keys)
    if session.answer.as_json:
        session.answer.json({"user_name": user_name, "added": [key.fingerprint for key in added]})
        return
    for key in keys:
        state = "may log in by" if key in added else "could log in before by"
        session.answer.say(f"Account {user_name} {state} key {key.fingerprint} {key.comment}".rstrip())


@command(app, "remove-key", "database", "as_json", over_api=api_dropbox.remove_key)
async def remove_key(
    session: Session,
    user_name: User,
    fingerprint: Annotated[str, typer.Argument(metavar="SHA256:…", help="As `dropbox accounts` shows it.")],
) -> None:
    """Take a key away. Sessions that are open are ended."""
    async with session.pool() as pool, transaction(pool) as connection:
        await dropbox_accounts.known(connection, user_name)
        if not await account_store.remove_key(connection, user_name, fingerprint):
            keys = await account_store.keys_of(connection, [user_name])
            there = ", ".join(key.fingerprint for key in keys) or "none"
            raise UserError(f"account {user_name} has no key {fingerprint}; its keys: {there}")
        await dropbox_accounts.record(connection, "dropbox.remove_key", user_name, keys=[fingerprint])
    if session.answer.as_json:
        session.answer.json({"user_name": user_name, "removed": fingerprint})
    else:
        session.answer.say(f"Account {user_name} can no longer log in by key {fingerprint}.")


@command(app, "disable", "database", "as_json", over_api=api_dropbox.disable)
async def disable(session: Session, user_name: User) -> None:
    """Let an account in no more, and end its sessions. Its organization's files stay."""
    await _switch(session, user_name, enabled=False)


@command(app, "enable", "database", "as_json", over_api=api_dropbox.enable)
async def enable(session: Session, user_name: User) -> None:
    """Let an account in again that was disabled."""
    await _switch(session, user_name, enabled=True)


@command(app, "files", "organization", "database", "as_json", over_api=api_dropbox.files)
async def files(
    session: Session,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Those, too, that have been removed.")] = False,
    unfetched: Annotated[bool, typer.Option("--unfetched", help="Only those that nobody has fetched.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
) -> None:
    """List the files that were left in hosted folders, the newest first: fetched or not, and by whom."""
    async with session.pool() as pool, transaction(pool) as connection:
        found = await file_store.list_files(
            connection,
            await _organization_id(session, connection),
            with_removed=all_,
            only_unfetched=unfetched,
            limit=limit or None,
        )
    if session.answer.as_json:
        session.answer.json({"files": [one._asdict() for one in found]})
    elif not found:
        session.answer.say("No file matches.")
    else:
        session.answer.table(dropbox_texts.FILES, [dropbox_texts.file_row(one) for one in found])
        if len(found) == limit:
            session.answer.note(f"the newest {limit:,} are shown; --limit 0 shows all")


@command(app, "make-keys", "as_json")
async def make_keys(
    session: Session,
    *,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="METERPOST_DROPBOX_FOLDER of the service.")],
    key_file: Annotated[Path, typer.Option(metavar="FILE", help="METERPOST_DROPBOX_KEY_FILE of delivery.")],
    host_keys_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="METERPOST_DROPBOX_HOST_KEYS_FILE of delivery.")
    ] = None,
) -> None:
    """Make the keys of the hosted folder and of delivery, and tell each side of the other's. Run where they lie.

    Keys that are there stay. FILE.pub is what the service takes as METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE.
    """
    from services.dropbox import host_keys as keys  # noqa: PLC0415 - only here SSH is needed, which takes long

    try:
        host_keys = await asyncio.to_thread(keys.load_host_keys, folder)
        delivery = await asyncio.to_thread(keys.ensure_delivery_key, key_file)
        if host_keys_file is not None:
            text = "".join(f"{keys.public_line(key)}\n" for key in host_keys)
            await asyncio.to_thread(host_keys_file.write_text, text, encoding="ascii")
    except OSError as error:
        raise UserError(f"the keys cannot be written: {error}") from None
    shown = [keys.shown(key) for key in host_keys]
    if session.answer.as_json:
        session.answer.json({"host_keys": shown, "delivery_key": delivery})
        return
    for one in shown:
        session.answer.say(f"host key, for customers to compare: {one}")
    session.answer.say(f"delivery logs in by {delivery}")


async def _switch(session: Session, user_name: str, *, enabled: bool) -> None:
    async with session.pool() as pool, transaction(pool) as connection:
        await dropbox_accounts.known(connection, user_name)
        switch = account_store.enable if enabled else account_store.disable
        changed = await switch(connection, user_name)
        if changed:
            action = "dropbox.enable" if enabled else "dropbox.disable"
            await dropbox_accounts.record(connection, action, user_name)
    dropbox_texts.tell_switched(session, user_name, "enabled" if enabled else "disabled", changed=changed)


async def _organization_id(session: Session, connection: Connection) -> int | None:
    if session.organization_name is None:
        return None
    return (await session.organization(connection)).organization_id
