"""What no waiting mends is said at once, in a sentence, without a secret; what waiting mends is waited for."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.local.postgres_server import PostgresServer
from services.platform.errors import Unavailable, UserError
from services.platform.postgres import connect_pool, transaction
from services.platform.slow_statements import StatementTooSlow
from tests.support.platform import Platform
from tests.support.polling import eventually


async def refusal_of(url: str) -> str:
    with pytest.raises(UserError) as caught:
        await connect_pool(url, max_size=1)
    return str(caught.value)


async def test_a_wrong_password_a_missing_database_and_a_broken_url_are_told_apart(database_url: str) -> None:
    parts = urlsplit(database_url)
    wrong = f"postgresql://meterpost:wrong-geheim@127.0.0.1:{parts.port}/postgres"
    assert "password" in await refusal_of(wrong)
    missing = database_url.replace(parts.path, "/no_such_database")
    assert "does not exist" in await refusal_of(missing)
    told = await refusal_of("postgresql://u:ge?heim@127.0.0.1:1/db")
    assert "percent-encoded" in told
    assert "heim" not in told
    assert "percent-encoded" in await refusal_of(f"{database_url}?sslmode=bogus")


async def test_missing_tables_say_what_to_do(postgres_server: PostgresServer) -> None:
    pool = await connect_pool(postgres_server.url("postgres"), max_size=1)
    try:
        with pytest.raises(UserError, match="db migrate"):
            async with transaction(pool) as connection:
                await connection.fetch("SELECT * FROM no_such_table")
    finally:
        await pool.close()


async def test_a_server_that_does_not_listen_is_waited_for() -> None:
    with pytest.raises(Unavailable):
        await connect_pool("postgresql://u:p@127.0.0.1:1/db", max_size=1)


@pytest.mark.parametrize("limit", ["ours", "the server's"])
async def test_a_statement_that_is_not_done_in_time_is_named(database_url: str, limit: str) -> None:
    """It is tried again like a server that is away, but nobody is told that the server does not answer."""
    pool = await connect_pool(database_url, max_size=1, statement_timeout_seconds=0.3 if limit == "ours" else 20)
    try:
        async with pool.acquire() as connection:
            await connection.execute("SET statement_timeout = '300ms'" if limit != "ours" else "SELECT 1")
        with pytest.raises(StatementTooSlow) as caught:
            async with transaction(pool) as connection:
                await connection.fetchval("SELECT pg_sleep($1), 'close the window'", 30)
        assert issubclass(StatementTooSlow, Unavailable)
        told = str(caught.value)
        assert "does not answer" not in told
        assert re.search(r"after 0\.[3-9] s", told)
        assert "SELECT pg_sleep($1), 'close the window'" in told
        assert "pg_stat_activity" in told
        async with transaction(pool) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        pool.terminate()


async def test_a_copy_that_is_not_done_in_time_is_named(database_url: str) -> None:
    pool = await connect_pool(database_url, max_size=2, statement_timeout_seconds=0.3)
    try:
        async with transaction(pool) as holder, pool.acquire() as blocked:
            await holder.execute("LOCK TABLE organization")
            with pytest.raises(StatementTooSlow, match="the statement: organization"):
                await blocked.copy_records_to_table("organization", records=[(1, "a", 1)])
    finally:
        pool.terminate()


async def test_a_server_that_is_frozen_is_away_and_no_statement_is_blamed(postgres_server: PostgresServer) -> None:
    """Nothing can begin there."""
    pool = await connect_pool(postgres_server.url("postgres"), max_size=1, statement_timeout_seconds=0.5)
    async with transaction(pool) as connection:
        backend = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            async with transaction(pool):
                pass
    finally:
        os.kill(backend, signal.SIGCONT)
        pool.terminate()


async def test_a_service_keeps_its_deadline_though_its_database_is_frozen(
    platform: Platform, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    await platform.declare_topics()
    service = platform.start("services.ingest", environment={"METERPOST_SHUTDOWN_DEADLINE_SECONDS": "2"})
    assert service.pid is not None
    eventually(lambda: "claimed" in service.log_tail(), 30, because="ingest works")
    backends = await asyncio.to_thread(
        postgres_server.run_sql,
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{urlsplit(platform.database_url).path[1:]}'",
    )
    frozen = [int(pid) for pid in backends.split()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        os.kill(service.pid, signal.SIGTERM)
        eventually(lambda: not service.is_running, 10, because="the service ends")
        assert time.monotonic() - started < 6
        assert "Traceback" not in service.log_tail()
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
