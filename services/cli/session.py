"""What every command shares: the options that tell where the servers are, connections, and how it answers."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.api.catalog_queries import AnyConnection, Organization, organizations
from services.cli.api_session import ApiPlace, connected
from services.cli.places import DATA_FOLDER_VARIABLE, DATABASE_VARIABLE, KAFKA_VARIABLE, Places, without_password
from services.cli.show import Answer
from services.platform.clock import SystemClock
from services.platform.errors import Unavailable, UserError
from services.platform.postgres import Pool, connect_pool

if TYPE_CHECKING:
    from services.platform.kafka import Producer
    from services.platform.kafka_admin import Admin

_WHERE = "Where the servers are"
_SHARED: Mapping[str, Any] = {
    "organization": Annotated[
        str | None,
        typer.Option("--organization", metavar="NAME", help="Needed only where there are several.", show_default=False),
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="Answer in JSON, and nothing else, on standard output.")],
    "kafka": Annotated[
        str | None,
        typer.Option(
            "--kafka", metavar="HOST:PORT", help=f"Kafka brokers. Or: {KAFKA_VARIABLE}", rich_help_panel=_WHERE
        ),
    ],
    "database": Annotated[
        str | None,
        typer.Option("--database", metavar="URL", help=f"PostgreSQL. Or: {DATABASE_VARIABLE}", rich_help_panel=_WHERE),
    ],
    "data_folder": Annotated[
        Path | None,
        typer.Option(
            "--data-folder",
            metavar="FOLDER",
            help=f"Data folder of a running demo. Or: {DATA_FOLDER_VARIABLE}. Default: the nearest .local",
            rich_help_panel=_WHERE,
        ),
    ],
}


@dataclass(frozen=True, slots=True)
class Session:
    """One invocation of a command."""

    places: Places
    answer: Answer
    organization_name: str | None

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        """Lend a pool of connections. Raises Unavailable or UserError where the database is of no use."""
        place = self.places.database()
        where = f"at {without_password(place.address)} (told by {place.told_by})"
        try:
            pool = await connect_pool(place.address, max_size=2, statement_timeout_seconds=300)
        except Unavailable as error:
            raise Unavailable(f"PostgreSQL does not answer {where}: {error.__cause__ or error}") from error
        except UserError as error:
            raise UserError(f"PostgreSQL {where}: {error}") from error
        try:
            yield pool
        finally:
            pool.terminate()

    @asynccontextmanager
    async def admin(self) -> AsyncIterator["Admin"]:
        """Lend an admin client of Kafka. Raises Unavailable."""
        from services.platform.kafka_admin import Admin  # noqa: PLC0415 - most commands need no Kafka
        from services.platform.kafka_refusal import KafkaHangsUp  # noqa: PLC0415 - as above

        place = self.places.kafka()
        admin = Admin(self.places.kafka_access())
        try:
            await admin.start()
        except KafkaHangsUp as error:
            raise Unavailable(f"Kafka does not answer at {place.address} (told by {place.told_by}): {error}") from error
        except (Unavailable, ValueError) as error:
            raise Unavailable(f"Kafka does not answer at {place.address} (told by {place.told_by})") from error
        try:
            yield admin
        finally:
            await admin.stop()

    @asynccontextmanager
    async def producer(self) -> AsyncIterator["Producer"]:
        """Lend a producer. Raises Unavailable."""
        from services.platform.kafka import Producer  # noqa: PLC0415 - most commands need no Kafka

        producer = Producer(self.places.kafka_access(), client="meterpost")
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def organization(self, connection: AnyConnection) -> Organization:
        """Return the organization that was named, or the only one there is. Raises UserError otherwise."""
        known = await organizations(connection)
        if self.organization_name is not None:
            for organization in known:
                if organization.name == self.organization_name:
                    return organization
            names = f"; there are: {_names(known)}" if known else ", nor any other"
            raise UserError(f"there is no organization {self.organization_name!r}{names}")
        if len(known) == 1:
            return known[0]
        if not known:
            raise UserError("there is no organization yet: `meterpost meters import` creates one with its first meters")
        raise UserError(f"there are several organizations; say which by --organization: {_names(known)}")


Command = Callable[..., Awaitable[None]]
OverApi = Callable[..., Awaitable[None]]
"""What a command does over the HTTP API: it is given the session, the connection and the same options."""


def command(app: typer.Typer, name: str, *shared: str, over_api: OverApi | None = None) -> Callable[[Command], Command]:
    """Register an async function as a command with the options named in `shared`, gathered into its `session`.

    With `meterpost --url`, `over_api` is called instead.
    """

    def register(function: Command) -> Command:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) if parameter.name in _SHARED else parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "session"
        ]
        added = [_parameter(option) for option in ("organization", "as_json", "kafka", "database") if option in shared]
        added.append(_parameter("data_folder"))
        added.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

        def run(**given: Any) -> None:
            told_at_the_root: ApiPlace | None = given.pop("context").find_object(ApiPlace)
            session = Session(
                Places(given.pop("kafka", None), given.pop("database", None), given.pop("data_folder")),
                Answer(as_json=given.pop("as_json", False)),
                given.pop("organization", None),
            )
            place = _api_of(name, told_at_the_root, session, over_api)
            if place is None or over_api is None:
                asyncio.run(_invoke(function, session, given))
            else:
                asyncio.run(_invoke_over_api(over_api, place, session, given))

        parameters = sorted([*own, *added], key=lambda parameter: parameter.kind)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = _flowing(function.__doc__ or "")
        app.command(name)(run)
        return function

    return register


def _flowing(doc: str) -> str:
    """Return a docstring with each paragraph in one line, for the help to break where the terminal ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n"))


async def _invoke(function: Command, session: Session, given: Mapping[str, Any]) -> None:
    await function(session, **given)


async def _invoke_over_api(function: OverApi, place: ApiPlace, session: Session, given: Mapping[str, Any]) -> None:
    async with connected(place) as api:
        await function(session, api, **given)


def _api_of(name: str, place: ApiPlace | None, session: Session, over_api: OverApi | None) -> ApiPlace | None:
    """Return the API that the command is to use, if it is to use one. Raises UserError."""
    if place is None:
        return None
    if over_api is None:
        if place.is_option:
            raise UserError(f"`{name}` works on this platform's own servers, not over the HTTP API: leave out --url")
        return None
    asked = [
        option
        for option, value in (
            ("--database", session.places.database_option),
            ("--organization", session.organization_name),
        )
        if value
    ]
    if asked and place.is_option:
        raise UserError(f"with --url the client says whose data it is: leave out {asked[0]}")
    return None if asked else place


def _parameter(option: str) -> inspect.Parameter:
    default = False if option == "as_json" else None
    return inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_SHARED[option])


def _names(known: list[Organization]) -> str:
    return ", ".join(repr(organization.name) for organization in known)


def wall_clock() -> SystemClock:
    """Return the machine's clock; commands use it for what happens to a job, never for readings."""
    return SystemClock()
