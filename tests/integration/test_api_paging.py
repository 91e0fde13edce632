"""Pages under any filter, while rows are added: no row that was there is lost, and none is seen twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.api import Api, running_api
from tests.support.seed import seed_catalog

NAMES = st.text(alphabet="abÄß %_'\\Zz", min_size=1, max_size=4).filter(lambda name: name.strip() != "")
QUIET = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=100_000, rate_per_second=100_000) as running:
        yield running


async def _add(connection: Any, name: str, transport: str, *, is_paused: bool = False) -> int:
    job_id: int = await connection.fetchval(
        "INSERT INTO export_job (organization_id, starts_at) VALUES (1, '2026-11-20T10:00Z') RETURNING job_id"
    )
    url = '{"url": "https://example.org/"}' if transport == "https" else '{"host": "h.example.org", "user": "u"}'
    await connection.execute(
        "INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, "
        "frequency_minutes, resolution_minutes, transport, transport_settings) "
        "VALUES (1, $1, 1, '2026-11-20T10:00Z', $2, 'meters_measurements', 60, 60, $3, $4)",
        *(job_id, name, transport, url),
    )
    if is_paused:
        await connection.execute(
            "INSERT INTO export_job_pause (organization_id, job_id, paused_from) VALUES (1, $1, '2026-11-20T10:00Z')",
            job_id,
        )
    return job_id


async def _all(api: Api, token: str, query: dict[str, Any], connection: Any, added: list[str]) -> list[dict[str, Any]]:
    """Walk every page; between two of them a job is added."""
    seen: list[dict[str, Any]] = []
    path: str | None = f"/v1/jobs?{urlencode(query)}"
    waiting = list(added)
    while path is not None:
        got = await api.get(path, token)
        assert got.status == 200, got
        assert len(got.json["jobs"]) <= int(query["limit"])
        seen += got.json["jobs"]
        link = got.headers.get("Link")
        path = link[1 : link.index(">")] if link else None
        assert (path is None) == (got.json["next_cursor"] is None)
        if waiting:
            await _add(connection, waiting.pop(), "https")
    return seen


async def test_no_job_is_lost_or_doubled_under_any_filter(api: Api) -> None:
    token = await api.token(1, "viewer")
    loop = asyncio.get_running_loop()
    connection = await asyncpg.connect(api.database_url)
    one_job = st.tuples(NAMES, st.sampled_from(["https", "sftp"]), st.booleans())

    async def walk(jobs: list[tuple[str, str, bool]], query: dict[str, Any], added: list[str]) -> None:
        await connection.execute("TRUNCATE export_job CASCADE")
        there = {
            await _add(connection, name, transport, is_paused=paused): (name, transport, paused)
            for name, transport, paused in jobs
        }
        seen = await _all(api, token, query, connection, added)
        ids = [one["job_id"] for one in seen]
        assert len(ids) == len(set(ids))
        lowered = await connection.fetchval("SELECT lower($1::text)", query.get("search", ""))
        for job_id, (name, transport, paused) in there.items():
            is_wanted = (
                lowered in await connection.fetchval("SELECT lower($1::text)", name)
                and query.get("transport", transport) == transport
                and query.get("state", "paused" if paused else "active") == ("paused" if paused else "active")
            )
            assert (job_id in ids) == is_wanted, (job_id, name, query)
        if query["sort"] == "job_id":
            assert ids == sorted(ids)
        else:
            keys = [
                ((await connection.fetchval("SELECT lower($1::text)", one["name"])).encode(), one["job_id"])
                for one in seen
            ]
            assert keys == sorted(keys)

    filters = st.fixed_dictionaries(
        {"limit": st.integers(1, 4), "sort": st.sampled_from(["job_id", "name"])},
        optional={
            "search": st.text(alphabet="abÄß%_'\\zZ", min_size=1, max_size=2),
            "state": st.sampled_from(["active", "paused"]),
            "transport": st.sampled_from(["https", "sftp"]),
        },
    )

    @QUIET
    @given(jobs=st.lists(one_job, max_size=9), query=filters, added=st.lists(NAMES, max_size=4))
    def property_(jobs: list[tuple[str, str, bool]], query: dict[str, Any], added: list[str]) -> None:
        asyncio.run_coroutine_threadsafe(walk(jobs, query, added), loop).result(60)

    try:
        await asyncio.to_thread(property_)
    finally:
        await connection.close()


async def test_no_window_is_lost_or_doubled_whatever_the_page_and_the_filter(api: Api) -> None:
    """A meter's name and site change within the range; windows of other meters are added meanwhile."""
    token = await api.token(1, "viewer")
    loop = asyncio.get_running_loop()
    connection = await asyncpg.connect(api.database_url)
    await connection.execute(
        """
        INSERT INTO site (site_id, organization_id, revision) VALUES (2, 1, 1);
        INSERT INTO site_description VALUES (2, '-infinity', 1, 'South', 'UTC'),
                                            (2, '2026-11-20T11:30Z', 1, 'S', 'UTC');
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse)
        VALUES (1, '2026-11-20T11:00Z', 1, 'wrong', 1, 'kWh', 1), (1, '2026-11-20T11:00Z', 2, 'Moved', 2, 'kWh', 1);
        CREATE TABLE measurement_15m_all PARTITION OF measurement_15m FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
        INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                 intervals_expected, pulses, energy_wh, volume)
        SELECT w, m, 1, 15, 1, 1, m, m, NULL
        FROM generate_series('2026-11-20T10:00Z'::timestamptz, '2026-11-20T13:45Z', '15 minutes') w,
             generate_series(1, 4) m WHERE m <> 4 OR extract(minute FROM w) = 30;
        """
    )
    rows = await connection.fetch("SELECT window_start, meter_id FROM measurement ORDER BY 1, 2")
    stored = [(row["window_start"].isoformat().replace("+00:00", "Z"), row["meter_id"]) for row in rows]

    def site_of(start: str, meter: int) -> int:
        return 2 if meter == 1 and start >= "2026-11-20T11:00:00Z" else 1

    async def walk(limit: int, meters: list[int], sites: list[int], until: int) -> None:
        query: dict[str, Any] = {
            "resolution": 15,
            "from": "2026-11-20T10:07:00Z",
            "until": f"2026-11-20T{until}:00:00Z",
            "limit": limit,
            **({"meter_id": ",".join(map(str, meters))} if meters else {}),
            **({"site_id": ",".join(map(str, sites))} if sites else {}),
        }
        seen: list[tuple[str, int]] = []
        path: str | None = f"/v1/measurements?{urlencode(query)}"
        while path is not None:
            got = await api.get(path, token)
            assert got.status == 200, got
            for one in got.json["measurements"]:
                start, meter = one["window_start"], one["meter_id"]
                seen.append((start, meter))
                assert one["site_id"] == site_of(start, meter)
                assert one["meter_name"] == ("Moved" if one["site_id"] == 2 else f"Meter {meter}")
                assert one["site_name"] == (
                    "North depot" if one["site_id"] == 1 else "S" if start >= "2026-11-20T11:30:00Z" else "South"
                )
            link = got.headers.get("Link")
            path = link[1 : link.index(">")] if link else None
        assert seen == [
            (start, meter)
            for start, meter in stored
            if "2026-11-20T10:07:00Z" <= start < f"2026-11-20T{until}:00:00Z"
            and (not meters or meter in meters)
            and (not sites or site_of(start, meter) in sites)
        ]

    @QUIET
    @given(
        limit=st.integers(1, 40),
        meters=st.lists(st.integers(1, 5), max_size=3),
        sites=st.lists(st.integers(1, 2), max_size=2),
        until=st.integers(11, 15),
    )
    def property_(limit: int, meters: list[int], sites: list[int], until: int) -> None:
        asyncio.run_coroutine_threadsafe(walk(limit, meters, sites, until), loop).result(60)

    try:
        await asyncio.to_thread(property_)
    finally:
        await connection.close()
