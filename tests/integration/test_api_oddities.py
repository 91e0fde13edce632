"""Whatever is put into a field, the answer is within the contract and never a mistake of ours."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from services.api.http.routes.every import ENDPOINTS
from tests.integration.test_api_access import BODIES, IDS
from tests.support.api import CONTRACT, Api, running_api
from tests.support.seed import seed_catalog

ODD: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 2**70, 1.5, 1e300, "", " ", "x" * 300, "x" * 3_000, "0", "1e9", "-1", "ü", "'"),
    *(
        "\u2028",
        "../..",
        "%",
        "2026-02-30T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "https://",
        "a@b",
    ),
    *("2026-01-01T00:00:00+23:59", [], [None], [0], [1, 1], {}, {"a": None}, {"transport": "sftp"}, [[]]),
]


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "SELECT setval(pg_get_serial_sequence(name, name || '_id'), 100) FROM unnest(ARRAY['site', 'meter']) name"
    )
    await connection.close()
    limits = {"rate_burst": 100_000, "rate_per_second": 100_000, "login_per_minute": 100_000}
    async with running_api(database_url, tmp_path, **limits) as running:
        yield running


def _path(template: str) -> str:
    for name, value in IDS.items():
        template = template.replace(f"{{{name}}}", value)
    return template


async def test_odd_values_in_every_field_of_every_body(api: Api) -> None:
    tokens = {"operator": await api.token(None, "operator"), "": await api.token(1, "admin", may_export=True)}
    tried = 0
    for endpoint in ENDPOINTS:
        if endpoint.body_form != "json" or endpoint.body is None or endpoint.name == "log_in":
            continue
        token = tokens["operator" if endpoint.scope == "operator" else ""]
        fields = CONTRACT["components"]["schemas"][endpoint.body.__name__]["properties"]
        for field in fields:
            for odd in ODD:
                body = {**BODIES[endpoint.name], field: odd}
                got = await api.call(
                    endpoint.method, _path(endpoint.path), token=token, body=body, headers={"If-Match": "*"}
                )
                assert got.status < 500, (endpoint.name, body, got)
                tried += 1
    assert tried > 2_000


async def test_odd_values_in_every_parameter_of_every_query(api: Api) -> None:
    token = await api.token(1, "admin", may_export=True)
    base = {"from": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "resolution": "60", "meter_id": "1"}
    for path, operations in CONTRACT["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if parameter["in"] == "path":
                continue
            known = {one["name"] for one in operations["get"]["parameters"]}
            for odd in ODD:
                text = odd if isinstance(odd, str) else json.dumps(odd)
                given = {name: value for name, value in base.items() if name in known} | {parameter["name"]: text}
                query = "&".join(f"{name}={quote(value)}" for name, value in given.items())
                got = await api.get(f"{_path(path)}?{query}", token)
                assert got.status < 500, (path, query, got)
