"""What no waiting mends is said at once, in a sentence, without a secret; what waiting mends is waited for."""

import asyncio
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.local.postgres_server import PostgresServer
from services.platform.errors import Unavailable, UserError
from services.platform.postgres import connect_pool, transaction
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
