"""PostgreSQL by asyncpg: the pool, and which of its errors mean "wait and try again"."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import asyncpg
import structlog

from services.platform.errors import Unavailable, UserError
from services.platform.health import Health
from services.platform.slow_statements import NamingConnection, StatementTooSlow

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.pool.PoolConnectionProxy

ResultT = TypeVar("ResultT")
log = structlog.get_logger()

FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 5.0
IDLE_IN_TRANSACTION_SECONDS = 60
ROLLBACK_SECONDS = 5
PULSE_SECONDS = 5.0
PULSES = 60

_AWAY = (
    OSError,  # nothing listens, the connection was reset
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,  # starting up or shutting down
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.PostgresIOError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,  # a server that has been replaced or not yet been promoted
    asyncpg.IdleInTransactionSessionTimeoutError,  # we were frozen for long
    asyncpg.DeadlockDetectedError,  # two writers met; the loser repeats its whole transaction
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,  # while a transaction was begun or ended; see slow_statements for all others
    asyncpg.InterfaceError,  # asyncpg's own word for a connection that was closed under it
    asyncpg.InternalClientError,  # asyncpg's rollback on a connection that broke in the middle of a statement
)


_WRONG = {
    asyncpg.InvalidPasswordError: "PostgreSQL refuses the user or the password of METERPOST_DATABASE_URL.",
    asyncpg.InvalidAuthorizationSpecificationError: "PostgreSQL refuses the user of METERPOST_DATABASE_URL.",
    asyncpg.InvalidCatalogNameError: "the database of METERPOST_DATABASE_URL does not exist: create it.",
    asyncpg.UndefinedTableError: "the database lacks tables: run `meterpost db migrate`.",
    asyncpg.UndefinedColumnError: "the database's tables are of another version: run `meterpost db migrate`.",
    asyncpg.InsufficientPrivilegeError: "PostgreSQL denies the user of METERPOST_DATABASE_URL what it needs.",
}
"""What no waiting mends, and what to do about it."""


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours: wait (Unavailable) or mend (UserError). None repeats a part of the URL."""
    try:
        yield
    except tuple(_WRONG) as error:
        raise UserError(_WRONG[type(error)]) from error
    except _AWAY as error:
        # The client files what it refuses itself, a value or a setting, under InterfaceError, too: no waiting mends it.
        if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
            raise
        raise Unavailable(f"PostgreSQL does not answer: {error!r}") from error


async def _nothing_to_reset(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Spare a round trip: transactions, in which all is done, leave nothing; asyncpg itself rolls open ones back."""


async def connect_pool(url: str, *, max_size: int, statement_timeout_seconds: float = 60) -> Pool:
    """Open a pool. Raises Unavailable where the server does not answer, UserError where the URL cannot be right."""
    try:
        with _translated():
            return await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=max_size,
                timeout=10,
                command_timeout=statement_timeout_seconds,
                reset=_nothing_to_reset,
                connection_class=NamingConnection,
                server_settings={
                    "timezone": "UTC",
                    "jit": "off",
                    # A client that vanished without a word gives its locks back, in the middle of a COPY, too.
                    "tcp_keepalives_idle": "10",
                    "tcp_keepalives_interval": "5",
                    "tcp_keepalives_count": "3",
                    # A process that is frozen inside a transaction gives its locks back.
                    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
                },
            )
    except ValueError:
        # Its words repeat parts of the URL, and with them of the password.
        raise UserError(
            "the database's URL cannot be understood: it has the form postgresql://user:password@host:port/database, "
            "with special characters of the user and the password percent-encoded"
        ) from None


@asynccontextmanager
async def transaction(pool: Pool | Connection) -> AsyncIterator[Connection]:
    """Lend a connection inside a transaction; raises Unavailable where waiting and repeating it all may help.

    Given a connection that is inside a transaction, it becomes a part of that one, rolled back alone where it fails.
    """
    if not isinstance(pool, asyncpg.Pool):
        with _translated():
            async with pool.transaction():
                yield pool
        return
    with _translated():
        async with pool.acquire(timeout=10) as connection:
            begun = connection.transaction()
            await begun.start()
            try:
                yield connection
            except BaseException:
                await _roll_back(connection, begun)
                raise
            await begun.commit()


async def _roll_back(connection: Connection, begun: asyncpg.transaction.Transaction) -> None:
    """Roll back, or drop the connection where the server does not answer even that."""
    try:
        async with asyncio.timeout(ROLLBACK_SECONDS):
            await begun.rollback()
    except _AWAY:
        with suppress(asyncpg.InterfaceError):  # a connection that broke has been given back already
            connection.terminate()


@dataclass(frozen=True, slots=True)
class Patience:
    """Waiting for servers that are away, as long as the service is not told to stop."""

    health: Health
    stopping: asyncio.Event

    async def postgres(self, operation: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Repeat `operation`, which must be safe to repeat, while PostgreSQL is away."""
        return await self._repeat(operation, "PostgreSQL")

    async def kafka(self, operation: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Repeat `operation`, which must be safe to repeat, while Kafka is away."""
        return await self._repeat(operation, "Kafka")

    async def _repeat(self, operation: Callable[[], Awaitable[ResultT]], server: str) -> ResultT:
        """Wait with exponential backoff and jitter, tell the readiness probe, keep the process alive.

        Raises Unavailable only when the service is told to stop meanwhile.
        """
        from services.platform.metrics import SERVER_WAITS  # noqa: PLC0415 - commands have no metrics

        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                result = await self._alive(operation)
            except Unavailable as error:
                if self.stopping.is_set():
                    raise
                SERVER_WAITS.labels(server).inc()
                self.health.waits_for(server)
                self.health.progress()
                event = "statement_too_slow" if isinstance(error, StatementTooSlow) else "server_away"
                log.warning(event, server=server, error=str(error), retry_in_seconds=round(delay, 2))
                await wait_or_stop(self.stopping, delay * random.uniform(0.5, 1))  # noqa: S311 - jitter is no secret
                delay = min(delay * 2, LONGEST_RETRY_SECONDS)
            else:
                self.health.answered(server)
                return result

    async def _alive(self, operation: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Await an operation that has deadlines of its own, and keep the process alive meanwhile, but not for ever."""
        task = asyncio.ensure_future(operation())
        try:
            for _pulse in range(PULSES):
                done, _pending = await asyncio.wait({task}, timeout=PULSE_SECONDS)
                if done:
                    break
                self.health.progress()
            return await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise


async def wait_or_stop(stopping: asyncio.Event, seconds: float) -> None:
    """Wait for `seconds`, or until the service is told to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
