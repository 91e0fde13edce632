"""PostgreSQL by asyncpg: the pool, and which of its errors mean "wait and try again"."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import asyncpg
import structlog

from services.platform.errors import Unavailable
from services.platform.metrics import SERVER_WAITS
from services.platform.telemetry import Health

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
    asyncpg.QueryCanceledError,  # a statement timeout
    asyncpg.InterfaceError,  # asyncpg's own word for a connection that was closed under it
    asyncpg.InternalClientError,  # asyncpg's rollback on a connection that broke in the middle of a statement
)


async def connect_pool(url: str, *, max_size: int, statement_timeout_seconds: float = 60) -> Pool:
    """Open a pool. Raises Unavailable where the server does not answer."""
    try:
        return await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=max_size,
            timeout=10,
            command_timeout=statement_timeout_seconds,
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
    except _AWAY as error:
        raise Unavailable(f"PostgreSQL does not answer: {error}") from error


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """Lend a connection inside a transaction; raises Unavailable where waiting and repeating it all may help."""
    try:
        async with pool.acquire(timeout=10) as connection:
            begun = connection.transaction()
            await begun.start()
            try:
                yield connection
            except BaseException:
                await _roll_back(connection, begun)
                raise
            await begun.commit()
    except _AWAY as error:
        raise Unavailable(f"PostgreSQL: {error!r}") from error


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
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                result = await operation()
            except Unavailable as error:
                if self.stopping.is_set():
                    raise
                SERVER_WAITS.labels(server).inc()
                self.health.not_ready(server)
                self.health.progress()
                log.warning("server_away", server=server, error=str(error), retry_in_seconds=round(delay, 2))
                await wait_or_stop(self.stopping, delay * random.uniform(0.5, 1))  # noqa: S311 - jitter is no secret
                delay = min(delay * 2, LONGEST_RETRY_SECONDS)
            else:
                self.health.ready()
                return result


async def wait_or_stop(stopping: asyncio.Event, seconds: float) -> None:
    """Wait for `seconds`, or until the service is told to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
