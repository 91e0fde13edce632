"""`meterpost secrets`: the keys that seal passwords, tokens and private keys in the database."""

from pathlib import Path
from typing import Annotated

import typer

from services.api.secret_store import keys_in_use, reseal_all
from services.cli.operator import operator_name
from services.cli.session import Session, command, wall_clock
from services.cli.show import Column
from services.platform.errors import UserError
from services.platform.postgres import transaction
from services.platform.secrets import new_key, put_key_first

app = typer.Typer(no_args_is_help=True, help="The keys that seal the secrets of jobs in the database.")

_DATABASE = ("database", "as_json")
_COLUMNS = (Column("Key", whole=True), Column("Secrets sealed with it", number=True), Column("Here"))


@command(app, "new-key", "as_json")
async def new_key_(
    session: Session,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Put it first in this file, which may not exist yet."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="ID", help="Its id. Default: from the date.")] = None,
) -> None:
    """Make a key. The first key of METERPOST_SECRET_KEYS(_FILE) seals, all of them open.

    Without --file it is shown: put it into METERPOST_SECRET_KEYS by way of whatever keeps your secrets.
    """
    key_id = name or wall_clock().now().strftime("k%Y%m%d-%H%M%S")
    if file is None:
        line = new_key(key_id)
        if session.answer.as_json:
            session.answer.json({"id": key_id, "line": line})
        else:
            session.answer.say(line)
        return
    try:
        put_key_first(file, key_id)
    except OSError as error:
        raise UserError(f"the key cannot be kept in {file}: {error.strerror}") from None
    if session.answer.as_json:
        session.answer.json({"id": key_id, "file": str(file)})
    else:
        session.answer.say(
            f"The key {key_id} is the first in {file} now. `meterpost secrets rotate` seals all with it."
        )


@command(app, "status", *_DATABASE)
async def status(session: Session) -> None:
    """Show with which keys the secrets are sealed, and which of the keys are known here."""
    known = session.places.vault().key_ids
    async with session.pool() as pool, transaction(pool) as connection:
        used = await keys_in_use(connection)
    missing = [key for key in used if key not in known]
    if session.answer.as_json:
        keys = [
            {"id": key, "secrets": used.get(key, 0), "known": key in known, "seals": [key] == list(known[:1])}
            for key in dict.fromkeys([*known, *used])
        ]
        session.answer.json({"keys": keys, "missing": missing})
        return
    rows = [
        (key, used.get(key, 0), ("seals" if key == known[0] else "opens") if key in known else "MISSING")
        for key in dict.fromkeys([*known, *used])
    ]
    session.answer.table(_COLUMNS, rows)
    if missing:
        session.answer.note("Secrets sealed with a missing key cannot be opened here: add the key, or set them anew.")
    elif not rows:
        session.answer.note("There is no key here yet, and no secret in the database.")
    elif spare := [key for key in known[1:] if key not in used]:
        session.answer.note(f"Nothing is sealed with {', '.join(spare)} any more: it may be removed everywhere.")


@command(app, "rotate", *_DATABASE)
async def rotate(session: Session) -> None:
    """Seal every secret with the newest key. May be repeated, and broken off at any time.

    Every delivery process must know the new key before: see the operations page.
    """
    vault = session.places.vault()
    async with session.pool() as pool:
        done = await reseal_all(
            pool,
            vault,
            operator_name(),
            wall_clock().now(),
            lambda total: None if session.answer.as_json else session.answer.note(f"{total:,} secrets looked at"),
        )
    if session.answer.as_json:
        session.answer.json({"key": vault.key_ids[0], **done._asdict()})
    else:
        session.answer.say(f"{done.resealed:,} of {done.total:,} secrets were sealed anew, with {vault.key_ids[0]}.")
        for one in done.unreadable:
            session.answer.note(f"left as it is: {one}")
    if done.unreadable:
        raise typer.Exit(1)
