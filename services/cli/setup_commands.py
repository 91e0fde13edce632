"""`meterpost db` and `meterpost topics`: what must be there before the services start."""

from typing import Annotated

import asyncpg
import typer

from services.cli.places import without_password
from services.cli.session import Session, command
from services.platform.errors import Unavailable, UserError
from services.platform.postgres import transaction
from services.platform.topics import for_replay, load_topics

database_app = typer.Typer(no_args_is_help=True, help="The database's tables.")
topics_app = typer.Typer(no_args_is_help=True, help="The topics on Kafka.")

_VERSION = "SELECT version_num FROM schema_version"


@command(database_app, "migrate", "database", "as_json")
async def migrate(session: Session) -> None:
    """Create the tables, or bring them up to date. Safe to repeat."""
    # Only here, because these imports would cost every other command a fifth of a second.
    import sqlalchemy.exc  # noqa: PLC0415

    from services.platform.migrations import upgrade_async  # noqa: PLC0415

    address = session.places.database().address
    async with session.pool():
        pass  # says clearly what is wrong with the address, before the migrations say it at length
    before = await _version(session)
    try:
        await upgrade_async(address)
    except (OSError, asyncpg.PostgresConnectionError) as error:
        raise Unavailable(f"PostgreSQL went away at {without_password(address)}: {error}") from error
    except (sqlalchemy.exc.SQLAlchemyError, asyncpg.PostgresError) as error:
        raise UserError(f"the tables cannot be brought up to date: {str(error).splitlines()[0]}") from error
    after = await _version(session)
    if session.answer.as_json:
        session.answer.json({"version_before": before, "version": after})
    elif before == after:
        session.answer.say(f"The database is up to date already (version {after}).")
    else:
        session.answer.say(f"The database is up to date now: from version {before or 'none'} to {after}.")


@command(topics_app, "declare", "kafka", "as_json")
async def declare(
    session: Session,
    *,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Let publishers set the arrival of readings, to replay old days; keeps readings for ever."
        ),
    ] = False,
    replication: Annotated[int, typer.Option(min=1, help="Brokers that keep a copy of each record.")] = 1,
) -> None:
    """Create the topics that are missing. Topics that are there stay as they are."""
    topics = [for_replay(topic) if replay else topic for topic in load_topics()]
    prefix = session.places.topic_prefix
    async with session.admin() as admin:
        created = await admin.declare(topics, prefix=prefix, replication=replication)
        times = await admin.time_types([prefix + topic.name for topic in topics])
    if session.answer.as_json:
        shown = [{"topic": name, "created": name in created, "time_type": kind} for name, kind in times.items()]
        session.answer.json({"topics": shown})
        return
    for name, kind in times.items():
        session.answer.say(f"{'created' if name in created else 'exists '}  {name} ({kind})")
    wrong = [prefix + one.name for one in topics if times[prefix + one.name] != one.time_type]
    if wrong:
        session.answer.note(f"these exist with another time type than asked for and stay so: {', '.join(wrong)}")


async def _version(session: Session) -> str | None:
    async with session.pool() as pool, transaction(pool) as connection:
        if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
            return None
        version: str | None = await connection.fetchval(_VERSION)
        return version
