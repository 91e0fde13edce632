"""The API's wiring: it listens at once and says 503 while the database is away."""

import asyncio
import gc
from collections.abc import Callable
from datetime import timedelta

import structlog
from aiohttp import web

from services.api import idempotency_store
from services.api.access_store import forget_sessions
from services.api.connection_test_store import KEPT, forget_tests
from services.api.http.call import Means
from services.api.http.server import build_application
from services.api.passwords import Passwords
from services.api.settings import ApiSettings
from services.api.signing_keys import SigningKeys
from services.platform.clock import Clock, SystemClock
from services.platform.errors import OperatorNeeded, Unavailable
from services.platform.health import Health
from services.platform.postgres import Patience, Pool, connect_pool, transaction, wait_or_stop

LOOK_SECONDS = 15.0
FORGET_EVERY = 40
OBJECTS_BETWEEN_COLLECTIONS = 50_000
# A thousand meters may be named in a query, and 8 kB, as usual, would not hold them.
LONGEST_URL = 65_536
# Of the time to stop, so much is kept for closing connections after the last answer.
CLOSING_SECONDS = 2.0
log = structlog.get_logger()


async def main(settings: ApiSettings, health: Health, stopping: asyncio.Event) -> None:
    """Answer requests until told to stop; those under way are finished."""

    def listens(port: int) -> None:
        # What is there now stays. Looking through it for cycles takes tens of milliseconds, in the middle of an answer
        # with thousands of rows; and those are gone with the answer, so they need no looking through, either.
        gc.collect()
        gc.freeze()
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
        log.info("api_listens", port=port)

    await serve(settings, health, stopping, SystemClock(), listens)


async def serve(
    settings: ApiSettings, health: Health, stopping: asyncio.Event, clock: Clock, listens: Callable[[int], None]
) -> None:
    """Do so by a clock, and tell the port once it listens. Raises OperatorNeeded without a key ring."""
    vault = settings.vault()
    if not vault.key_ids:
        raise OperatorNeeded(
            "tokens cannot be signed, because there is no key to seal the signing key with: set "
            "METERPOST_SECRET_KEYS_FILE or METERPOST_SECRET_KEYS (`meterpost secrets new-key` makes a key)"
        )
    rotate_after = timedelta(days=settings.signing_key_days)
    keys = SigningKeys(vault, settings.api_public_url, settings.token_lifetime, rotate_after)
    means = Means(settings, clock, keys, vault, Passwords())
    seconds = max(1.0, settings.shutdown_deadline_seconds - CLOSING_SECONDS)
    runner = web.AppRunner(
        build_application(means), access_log=None, shutdown_timeout=seconds, max_line_size=LONGEST_URL
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.api_host, settings.api_port, backlog=512)
        await site.start()
        listens(runner.addresses[0][1])
        await _look_after(means, health, stopping)
    finally:
        await runner.cleanup()
        if means.found_pool is not None:
            means.found_pool.terminate()


async def _look_after(means: Means, health: Health, stopping: asyncio.Event) -> None:
    """Connect, keep the keys fresh and remove what has expired, until told to stop."""
    patience = Patience(health, stopping)
    settings = means.settings
    url = settings.database_url.get_secret_value()
    rounds = 0
    try:
        pool = await patience.postgres(
            lambda: connect_pool(
                url, max_size=settings.api_connections, statement_timeout_seconds=settings.statement_seconds
            )
        )
        means.found_pool = pool
        while not stopping.is_set():
            await patience.postgres(lambda: means.keys.refresh(pool, means.clock.now()))
            health.started()
            health.progress()
            if rounds % FORGET_EVERY == 0:
                await patience.postgres(lambda: _forget(means, pool))
            rounds += 1
            await wait_or_stop(stopping, LOOK_SECONDS)
    except Unavailable:
        return  # told to stop while PostgreSQL is away


async def _forget(means: Means, pool: Pool) -> None:
    now = means.clock.now()
    async with transaction(pool) as connection:
        await idempotency_store.forget(connection, now)
        await forget_sessions(connection, now - timedelta(days=30))
        await forget_tests(connection, now - KEPT)
