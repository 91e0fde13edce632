"""A search for meters gives the same whether names are kept in memory or read from the database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api import meter_names
from services.api.meter_names import MeterNames
from services.platform.postgres import Pool, connect_pool, transaction
from tests.support.api import Api, running_api
from tests.support.seed import seed_catalog

TEXT = st.text(alphabet="aÄß%_'\\\n\x1fZİΣ 1", min_size=1, max_size=4)


async def _seed(database_url: str) -> None:
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "SELECT setval(pg_get_serial_sequence('meter', 'meter_id'), 10);"
        "INSERT INTO site (site_id, organization_id, revision) VALUES (2, 1, 1);"
        "INSERT INTO site_description VALUES (2, '-infinity', 1, 'South', 'UTC')"
    )
    await connection.close()


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await _seed(database_url)
    async with running_api(database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    await _seed(database_url)
    found = await connect_pool(database_url, max_size=2)
    yield found
    found.terminate()


async def _found(api: Api, token: str, search: str, more: str = "") -> list[int]:
    got = await api.get(f"/v1/meters?search={search}{more}", token)
    assert got.status == 200, got
    return [one["meter_id"] for one in got.json["meters"]]


async def test_a_search_follows_the_catalog(api: Api) -> None:
    viewer, admin = await api.token(1, "viewer"), await api.token(1, "admin")
    assert await _found(api, viewer, "meter%201") == [1, 10]
    assert await _found(api, viewer, "boiler") == []
    meter = {"name": "Boiler", "serial_number": "XK-77", "meter_type": "Heat", "site_id": 1, "unit": "kWh"}
    made = await api.call("POST", "/v1/meters", token=admin, body={**meter, "units_per_pulse": "1"})
    assert made.status == 201, made
    new = made.json["meter_id"]
    assert await _found(api, viewer, "boiler") == await _found(api, viewer, "LER%20xk") == [new]
    got = await api.get(f"/v1/meters/{new}", admin)
    edited = await api.call(
        "PATCH", f"/v1/meters/{new}", token=admin, body={"name": "Cellar"}, headers={"If-Match": got.etag}
    )
    assert edited.status == 200, edited
    assert await _found(api, viewer, "boiler") == []
    assert await _found(api, viewer, "boiler", f"&revision={made.json['catalog_revision']}") == [new]
    assert await _found(api, viewer, "cellar") == [new]
    assert await _found(api, viewer, "") == [*range(1, 11), new]
    held = await api.token(1, "viewer", site_ids=[2])
    assert await _found(api, held, "cellar") == []


async def _add(pool: Pool, name: str, serial_number: str | None) -> int:
    async with transaction(pool) as connection:
        revision = await connection.fetchval("UPDATE catalog_revision SET revision = revision + 1 RETURNING revision")
        meter_id: int = await connection.fetchval(
            "INSERT INTO meter (organization_id, meter_type, utility, serial_number, revision) "
            "VALUES (1, 'Heat', 'heat', $1, $2) RETURNING meter_id",
            *(serial_number, revision),
        )
        await connection.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "VALUES ($1, '-infinity', $2, $3, 1, 'kWh', 1)",
            *(meter_id, revision, name),
        )
    return meter_id


async def test_no_meter_that_the_database_finds_is_missed(pool: Pool) -> None:
    loop = asyncio.get_running_loop()
    names = MeterNames(lambda: 0.0)

    async def check(added: list[tuple[str, str | None]], text: str, after: int) -> None:
        for name, serial_number in added:
            await _add(pool, name, serial_number)
        async with transaction(pool) as connection:
            rows = await connection.fetch(
                "SELECT meter_id FROM meter JOIN meter_configuration USING (meter_id) WHERE meter_id > $2 "
                "AND position(lower($1) IN lower(name || ' ' || coalesce(serial_number, ''))) > 0",
                *(text, after),
            )
            found = await names.find(connection, 1, text, after)
        assert found is None if "\n" in text else set(found or []) >= {row["meter_id"] for row in rows}

    @given(
        added=st.lists(st.tuples(TEXT, st.none() | TEXT), max_size=3),
        text=TEXT,
        after=st.integers(0, 20),
    )
    def property_(added: list[tuple[str, str | None]], text: str, after: int) -> None:
        asyncio.run_coroutine_threadsafe(check(added, text, after), loop).result(60)

    await asyncio.to_thread(property_)


async def test_names_are_kept_for_a_while_and_only_some(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    names = MeterNames(lambda: now[0], most_characters=200)
    async with transaction(pool) as connection:
        assert await names.find(connection, 1, "METER 1", 0) == [1, 10]
        assert await names.find(connection, 1, "METER 1", 1) == [10]
        # No revision is new, so nobody looks, until what is kept is old.
        await connection.execute("UPDATE meter_configuration SET name = 'Other'")
        assert await names.find(connection, 1, "other", 0) == []
        now[0] = 601.0
        assert await names.find(connection, 1, "other", 0) == list(range(1, 11))
        # A database that went back is not believed to be the one that was read.
        await connection.execute("UPDATE catalog_revision SET revision = revision - 1")
        assert await names.find(connection, 1, "other", 0) is None
        monkeypatch.setattr(meter_names, "MOST_FOUND", 3)
        await connection.execute("UPDATE catalog_revision SET revision = revision + 1")
        assert await names.find(connection, 1, "other", 0) is None
        assert await names.find(connection, 1, "other", 7) == [8, 9, 10]
        small = MeterNames(lambda: 0.0, most_characters=5)
        assert await small.find(connection, 1, "other", 7) == [8, 9, 10]
