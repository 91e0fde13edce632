"""The API's manners: tokens, problems, paging, ETags, repeated requests, limits."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import Api, running_api
from tests.support.seed import seed_catalog


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path) as running:
        yield running


async def test_a_secret_becomes_a_token_that_opens_the_own_organization(api: Api) -> None:
    client_id, secret = await api.client(1, "viewer", name="BI")
    got = await api.exchange(client_id, secret)
    assert got.status == 200
    assert got.json["scope"] == "viewer"
    assert 0 < got.json["expires_in"] <= 900
    assert got.headers["Cache-Control"] == "no-store"
    token = got.json["access_token"]
    me = (await api.get("/v1/me", token)).json
    assert (me["actor"], me["name"], me["organization_id"]) == (f"client:{client_id}", "BI", 1)
    sites = (await api.get("/v1/sites", token)).json["sites"]
    assert [(one["site_id"], one["name"], one["time_zone"]) for one in sites] == [(1, "North depot", "Europe/Berlin")]
    wrong = await api.exchange(client_id, secret + "x")
    assert (wrong.status, wrong.json["error"]) == (401, "invalid_client")


async def test_pages_and_etags(api: Api) -> None:
    token = await api.token(1)
    seen: list[int] = []
    path = "/v1/meters?limit=3"
    while path:
        got = await api.get(path, token)
        seen += [one["meter_id"] for one in got.json["meters"]]
        cursor = got.json["next_cursor"]
        path = f"/v1/meters?limit=3&cursor={cursor}" if cursor else ""
    assert seen == list(range(1, 11))
    meter = await api.get("/v1/meters/4", token)
    assert (await api.get("/v1/meters/4", token, If_None_Match=meter.etag)).status == 304
    unheeded = await api.call("PATCH", "/v1/meters/4", token=token, body={"name": "Boiler"})
    assert unheeded.status == 428
    edited = await api.call(
        "PATCH", "/v1/meters/4", token=token, body={"name": "Boiler"}, headers={"If-Match": meter.etag}
    )
    assert (edited.status, edited.json["name"]) == (200, "Boiler")
    late = await api.call("PATCH", "/v1/meters/4", token=token, body={"name": "X"}, headers={"If-Match": meter.etag})
    assert late.status == 412
