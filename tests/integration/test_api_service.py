"""The API as a process: it stops in order, waits for the database, rotates keys, and is as docs/api.md says."""

import asyncio
import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from services.api.signing_keys import SigningKeys, TokenError
from services.local.ports import free_port
from services.local.postgres_server import PostgresServer
from services.platform.clock import SystemClock
from services.platform.postgres import Pool
from services.platform.secrets import KeyMissing, Vault, new_key, parse_keys
from tests.support.api import Api, running_api
from tests.support.closing import many_versions, store_versions
from tests.support.file_servers import installed
from tests.support.platform import REPOSITORY, Platform, running
from tests.support.polling import eventually_async
from tests.support.seed import seed_catalog


async def test_every_command_of_the_walk_does_what_it_says(database_url: str, tmp_path: Path) -> None:
    for program in ("curl", "jq"):
        installed(program)
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    script = "set -euo pipefail\n" + "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "SELECT setval(pg_get_serial_sequence(name, name || '_id'), 100) FROM unnest(ARRAY['site', 'meter']) name"
    )
    await connection.close()
    await store_versions(database_url, many_versions(1))
    # A link begins with the address that callers use, so it is known before.
    port, store = free_port(), (tmp_path / "store").as_uri()
    where = {"api_port": port, "api_public_url": f"http://127.0.0.1:{port}", "export_store_url": store}
    with running(Platform("127.0.0.1:9", database_url, "", tmp_path)) as processes:
        processes.start(
            "services.exports",
            environment={"METERPOST_EXPORT_STORE_URL": store, "METERPOST_EXPORT_LOOK_SECONDS": "0.1"},
        )
        async with running_api(database_url, tmp_path, **where) as api:
            said = await _walk(api, script, tmp_path)
    assert b"meter_id,meter_type,meter_name" in said
    assert b"export.csv: OK" in said
    assert (tmp_path / "export.csv").read_bytes().count(b"Electricity,Meter 1,") == 3


async def _walk(api: Api, script: str, tmp_path: Path) -> bytes:
    client_id, secret = await api.client(1, "admin", may_export=True)
    file = tmp_path / "api-client.json"
    file.write_text(json.dumps({"client_id": client_id, "client_secret": secret}), encoding="ascii")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-x", "-c", script),
        env={
            "URL": api.url,
            "FILE": str(file),
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "80",
            "PATH": f"{_command(tmp_path)}:/usr/bin:/bin:/usr/local/bin",
        },
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _nothing = await process.communicate()
    assert process.returncode == 0, said.decode()[-3_000:]
    return said


async def test_the_lines_of_the_readme_show_measurements(database_url: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [script] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE measurement_60m_all PARTITION OF measurement_60m FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
    )
    start: datetime = await connection.fetchval(
        """
        INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                 intervals_expected, pulses, energy_wh, volume)
        VALUES (date_trunc('hour', now()) - interval '2 hours', 1, 1, 60, 60, 60, 7, 7.25, NULL)
        RETURNING window_start
        """
    )
    await connection.close()
    async with running_api(database_url, tmp_path) as api:
        client_id, secret = await api.client(1, "viewer")
        file = tmp_path / "api-client.json"
        file.write_text(json.dumps({"client_id": client_id, "client_secret": secret}), encoding="ascii")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", script),
            env={"URL": api.url, "FILE": str(file)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _nothing = await process.communicate()
    assert (process.returncode, said.decode()) == (0, f"{start:%Y-%m-%dT%H:%M:%SZ} Meter 1 7.25\n")


def _command(folder: Path) -> Path:
    """Return a folder with a `meterpost` that runs this code."""
    commands = folder / "bin"
    commands.mkdir()
    command = commands / "meterpost"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m services.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return commands


async def test_a_process_says_unavailable_while_the_database_is_away_and_stops_in_order(
    platform: Platform, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(new_key("k1") + "\n", encoding="ascii")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = platform.start(
        "services.api", environment={"METERPOST_API_PORT": str(port), "METERPOST_SECRET_KEYS_FILE": str(keys)}
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:

        async def status() -> int:
            try:
                async with session.post(f"{url}/oauth/token", data=_FORM) as response:
                    retry_after.append(response.headers.get("Retry-After"))
                    return response.status
            except aiohttp.ClientError:
                return 0

        async def is_refused() -> bool:
            return await status() == 401

        async def is_unavailable() -> bool:
            return await status() == 503

        retry_after: list[str | None] = []
        await eventually_async(is_refused, 20, because="it serves")
        postgres_server.stop(10)
        try:
            await eventually_async(is_unavailable, 20, because="it says that the database is away")
            assert retry_after[-1] == "5"
        finally:
            postgres_server.start()
        await eventually_async(is_refused, 30, because="it goes on by itself")
    process.stop(timeout_s=8)
    assert process.exit_code == 0
    log = process.log_tail(1_000)
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    [first, *_more] = [event for event in events if event["event"] == "api_request"]
    assert first["operation"] == "give_token"
    assert first["request_id"]
    assert "a-secret-of-nobody" not in log


async def test_without_keys_it_says_what_to_do(platform: Platform) -> None:
    process = platform.start("services.api", environment={"METERPOST_API_PORT": "0"})

    async def has_ended() -> bool:
        return not process.is_running

    await eventually_async(has_ended, 20, because="it cannot start")
    assert process.exit_code == 4
    assert "METERPOST_SECRET_KEYS_FILE" in process.log_tail(20)


async def test_too_many_requests_are_told_when_to_come_again(database_url: str, tmp_path: Path) -> None:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_per_second=0.5, rate_burst=3, login_per_minute=3) as api:
        token, other = await api.token(1), await api.token(1)
        statuses = [(await api.get("/v1/me", token)).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        limited = await api.get("/v1/me", token)
        assert limited.json["code"] == "too_many_requests"
        assert int(limited.headers["Retry-After"]) >= 1
        assert (await api.get("/v1/me", other)).status == 200
        login = {"email": "a@example.org", "password": "wrong-password"}
        tries = [(await api.call("POST", "/v1/sessions", body=login)).status for _ in range(4)]
        assert tries == [401, 401, 401, 429]


async def test_keys_rotate_and_old_tokens_stay_good_until_they_expire(pool: Pool) -> None:
    ring = parse_keys(new_key("k1"))
    now, minute = SystemClock().now(), timedelta(minutes=1)

    def process(keys: dict[str, bytes]) -> SigningKeys:
        return SigningKeys(Vault(keys), "me", 15 * minute, timedelta(days=30))

    first, second = process(ring), process(ring)
    await asyncio.gather(first.refresh(pool, now), second.refresh(pool, now))
    token, _expires_at = first.issue("mp-1", 1, "viewer", now)
    assert second.verify(token, now).subject == "mp-1"
    # A month later another key signs; what was signed before is verified until it expires, then its key goes.
    later = now + timedelta(days=30)
    before = first.issue("mp-1", 1, "viewer", later - minute)[0]
    await second.refresh(pool, later)
    assert second.jwks()["keys"][0]["kid"] != first.jwks()["keys"][0]["kid"]
    after = second.issue("mp-1", 1, "viewer", later)[0]
    assert not first.knows(after)
    await first.refresh(pool, later)
    assert first.verify(after, later).subject == "mp-1"
    assert second.verify(before, later).organization_id == 1
    with pytest.raises(TokenError, match="expired"):
        second.verify(before, later + 15 * minute)
    # A new first key of the ring is a new key that signs, at once.
    await process(parse_keys(new_key("k2")) | ring).refresh(pool, later + minute)
    with pytest.raises(KeyMissing, match="k2"):
        await first.refresh(pool, later + 2 * minute)
    rows = await pool.fetch("SELECT private_sealed FROM signing_key ORDER BY created_at DESC")
    assert [None if row[0] is None else row[0][:6] for row in rows] == ["v1.k2.", None, None]


_FORM = {"grant_type": "client_credentials", "client_id": "a", "client_secret": "a-secret-of-nobody"}
