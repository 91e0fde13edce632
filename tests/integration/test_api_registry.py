"""The registry over HTTP: effective dates, revisions, imports, requests that are repeated, and mistakes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.api.http.routes.every import ENDPOINTS
from tests.support.api import Api, Got, running_api

HEADER = "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO organization (name, revision) VALUES ('Test', 0)")
    await connection.close()
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def _post(api: Api, token: str, path: str, body: Any, **headers: str) -> Got:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.call("POST", path, token=token, body=body, headers=named)


async def test_an_organization_from_nothing_to_an_attached_meter(api: Api) -> None:
    operator = await api.token(None, "operator")
    organization = (await _post(api, operator, "/v1/organizations", {"name": "New Utilities"})).json
    path = f"/v1/organizations/{organization['organization_id']}"
    assert (await api.get(path, operator)).json == organization
    first = (await _post(api, operator, f"{path}/api-clients", {"name": "first", "role": "admin"})).json
    admin = (await api.exchange(first["client_id"], first["client_secret"])).json["access_token"]
    assert (await api.get("/v1/organization", admin)).json == organization
    account = (await _post(api, admin, "/v1/accounts", {"name": "Customer"})).json
    site = await _post(
        *(api, admin, "/v1/sites"),
        {"name": "Mill", "time_zone": "Europe/London", "account_id": account["account_id"]},
    )
    assert site.headers["Location"] == f"/v1/sites/{site.json['site_id']}"
    assert (await api.get(site.headers["Location"], admin)).json == site.json
    device = await _post(api, admin, "/v1/devices", {"device_id": "LG-9", "kind": "logger"})
    assert device.status == 201
    meter = await _post(
        *(api, admin, "/v1/meters"),
        {
            "name": "Gas",
            "meter_type": "Gas",
            "site_id": site.json["site_id"],
            "unit": "m3",
            "units_per_pulse": "0.010",
            "normalization_factor": "0.9627",
            "calorific_value": "10.35",
            "serial_number": "G-1",
        },
    )
    assert (meter.status, meter.json["units_per_pulse"], meter.json["utility"]) == (201, "0.01", "gas")
    link = {
        "device_id": "LG-9",
        "input": 2,
        "meter_id": meter.json["meter_id"],
        "valid_from": "2026-01-01T01:00:00+01:00",
    }
    attached = await _post(api, admin, "/v1/attachments", link)
    assert (attached.status, attached.json["valid_from"]) == (201, "2026-01-01T00:00:00Z")
    inputs = (await api.get("/v1/devices/LG-9/inputs", admin)).json["inputs"]
    assert [(one["input"], one["meter_id"]) for one in inputs] == [(2, meter.json["meter_id"])]
    before = await api.get("/v1/attachments?at=2025-12-31T00:00:00Z", admin)
    assert before.json["attachments"] == []
    await _post(api, admin, "/v1/attachments", {"device_id": "LG-9", "input": 2, "meter_id": None})
    assert (await api.get("/v1/attachments", admin)).json["attachments"] == []
    history = (await api.get("/v1/attachments?history=true&limit=1", admin)).json
    rest = (await api.get(f"/v1/attachments?history=true&limit=1&cursor={history['next_cursor']}", admin)).json
    assert [one["meter_id"] for one in history["attachments"] + rest["attachments"]] == [meter.json["meter_id"], None]
    assert rest["next_cursor"] is None


async def test_an_edit_holds_from_its_date_on_and_a_correction_is_a_new_revision(api: Api) -> None:
    token = await api.token(1)
    site = await _post(api, token, "/v1/sites", {"name": "Old", "time_zone": "UTC"})
    path = site.headers["Location"]
    change = {"name": "New", "valid_from": "2026-03-01T00:00:00Z"}
    edited = await api.call("PATCH", path, token=token, body=change, headers={"If-Match": site.etag})
    assert (edited.status, edited.json["name"]) == (200, "New")
    assert (await api.get(f"{path}?at=2026-02-28T23:59:59Z", token)).json["name"] == "Old"
    assert (await api.get(f"{path}?revision={site.json['catalog_revision']}", token)).json["name"] == "Old"
    since_ever = {"name": "Older", "valid_from": None}
    corrected = await api.call("PATCH", path, token=token, body=since_ever, headers={"If-Match": edited.etag})
    assert corrected.json["name"] == "New"
    assert (await api.get(f"{path}?at=2026-02-28T23:59:59Z", token)).json["name"] == "Older"
    history = (await api.get(f"{path}/descriptions", token)).json["descriptions"]
    assert [one["name"] for one in history] == ["Old", "Older", "New"]
    same = await api.call("PATCH", path, token=token, body={"name": "New"}, headers={"If-Match": corrected.etag})
    assert same.json == corrected.json
    future = await api.get(f"{path}?revision=999", token)
    assert (future.status, future.json["field"]) == (422, "revision")


async def test_what_is_corrected_since_ever_takes_nothing_from_later_on_along(api: Api) -> None:
    token = await api.token(1)
    site = await _post(api, token, "/v1/sites", {"name": "Old", "time_zone": "UTC"})
    later = {"time_zone": "Europe/Berlin", "valid_from": "2026-03-01T00:00:00Z"}
    path = site.headers["Location"]
    edited = await api.call("PATCH", path, token=token, body=later, headers={"If-Match": site.etag})
    since_ever = {"name": "Older", "valid_from": None}
    await api.call("PATCH", path, token=token, body=since_ever, headers={"If-Match": edited.etag})
    first = (await api.get(f"{path}?at=2026-02-28T23:59:59Z", token)).json
    assert (first["name"], first["time_zone"]) == ("Older", "UTC")
    gas = {"name": "Gas", "meter_type": "Gas", "unit": "m3", "units_per_pulse": "0.01", "calorific_value": "11.2"}
    meter = await _post(api, token, "/v1/meters", {**gas, "site_id": site.json["site_id"]})
    path = meter.headers["Location"]
    later = {"calorific_value": "10.5", "normalization_factor": "0.95", "valid_from": "2026-03-01T00:00:00Z"}
    edited = await api.call("PATCH", path, token=token, body=later, headers={"If-Match": meter.etag})
    since_ever = {"units_per_pulse": "0.02", "valid_from": None}
    await api.call("PATCH", path, token=token, body=since_ever, headers={"If-Match": edited.etag})
    found = []
    for day in ("2026-02-28", "2026-03-01"):
        one = (await api.get(f"{path}?at={day}T00:00:00Z", token)).json
        found.append((one["units_per_pulse"], one["normalization_factor"], one["calorific_value"]))
    assert found == [("0.02", "1", "11.2"), ("0.01", "0.95", "10.5")]


async def test_an_import_is_all_or_nothing_with_a_report_for_each_line(api: Api) -> None:
    token = await api.token(1)
    good = f"{HEADER}\nA,Water,m3,0.1,Mill,LG-1,logger,1\nB,Electricity,kWh,0.001,Mill,BR-1,bridge,\n"
    bad = f"{good}C,Steam,m3,1,Mill,LG-1,logger,3\nD,Water,m3,-1,Mill,LG-1,logger,1\n"

    async def send(text: str, query: str = "", **headers: str) -> Got:
        sent = {"Content-Type": "text/csv", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await api.call("POST", f"/v1/meters/import{query}", token=token, data=text.encode(), headers=sent)

    refused = await send(bad)
    assert (refused.status, refused.json["code"]) == (422, "import_refused")
    assert {one["line"] for one in refused.json["lines"]} == {4, 5}
    trial = await send(good, "?dry_run=true&time_zone=Europe/London")
    assert (trial.status, trial.json["meters"], trial.json["catalog_revision"]) == (200, 2, None)
    assert (await api.get("/v1/meters", token)).json["meters"] == []
    done = await send(good, "?time_zone=Europe/London", Idempotency_Key="once")
    assert (done.json["meters"], done.json["sites"], done.json["devices"]) == (2, 1, 2)
    assert (await api.get("/v1/sites", token)).json["sites"][0]["time_zone"] == "Europe/London"
    assert (await send(good)).json["unchanged"] == 2
    again = await send(good, "?time_zone=Europe/London", Idempotency_Key="once")
    assert (again.json, again.headers["Idempotent-Replay"]) == (done.json, "true")


async def test_a_repeated_request_creates_once_even_at_the_same_time(api: Api) -> None:
    token = await api.token(1)
    body = {"name": "Twin", "time_zone": "UTC"}
    answers = await asyncio.gather(*(_post(api, token, "/v1/sites", body, Idempotency_Key="k") for _ in range(8)))
    assert {one.status for one in answers} == {201}
    assert len({one.content for one in answers}) == 1
    assert {one.headers["Location"] for one in answers} == {answers[0].headers["Location"]}
    assert sum(one.headers.get("Idempotent-Replay") == "true" for one in answers) == 7
    assert len((await api.get("/v1/sites", token)).json["sites"]) == 1
    other = await _post(api, token, "/v1/sites", {**body, "name": "Other"}, Idempotency_Key="k")
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
    client = await _post(api, token, "/v1/api-clients", {"name": "BI", "role": "viewer"}, Idempotency_Key="c")
    again = await _post(api, token, "/v1/api-clients", {"name": "BI", "role": "viewer"}, Idempotency_Key="c")
    assert again.json == client.json
    connection = await asyncpg.connect(api.database_url)
    kept = await connection.fetchval("SELECT body FROM idempotent_answer WHERE idempotency_key = 'c'")
    assert client.json["client_secret"].encode() not in kept
    # A key whose time is over is free again.
    await connection.execute("UPDATE idempotent_answer SET expires_at = now() WHERE idempotency_key = 'k'")
    await connection.close()
    assert (await _post(api, token, "/v1/sites", body, Idempotency_Key="k")).json != answers[0].json


async def test_pages_lose_and_double_nothing_while_rows_are_added(api: Api) -> None:
    token = await api.token(1)
    for number in range(7):
        await _post(api, token, "/v1/sites", {"name": f"S{number}", "time_zone": "UTC"})
    seen, path = [], "/v1/sites?limit=2&search=s"
    while path:
        got = await api.get(path, token)
        seen += [one["name"] for one in got.json["sites"]]
        if len(seen) < 8:
            await _post(api, token, "/v1/sites", {"name": f"S{len(seen) + 6}x", "time_zone": "UTC"})
        link = got.headers.get("Link")
        path = link[1 : link.index(">")] if link else ""
    everything = [one["name"] for one in (await api.get("/v1/sites", token)).json["sites"]]
    assert len(everything) > 7
    assert seen == everything
    cursor = (await api.get("/v1/sites?limit=2", token)).json["next_cursor"]
    misused = await api.get(f"/v1/sites?limit=2&search=s&cursor={cursor}", token)
    assert (misused.status, misused.json["code"]) == (400, "bad_cursor")


MISTAKES: list[tuple[str, str, Any, int, str, str | None, str]] = [
    ("POST", "/v1/sites", {"name": "A", "timezone": "UTC"}, 422, "unknown_field", "timezone", "time_zone"),
    ("POST", "/v1/sites", {"name": "A"}, 422, "missing_field", "time_zone", "time_zone"),
    ("POST", "/v1/sites", {"name": "", "time_zone": "UTC"}, 422, "invalid_value", "name", "length"),
    ("POST", "/v1/sites", {"name": "A", "time_zone": "Berlin"}, 422, "invalid_value", "time_zone", "Europe/Berlin"),
    ("POST", "/v1/sites", {"name": "A", "time_zone": "UTC", "account_id": 9}, 422, "invalid_value", "account_id", "9"),
    ("POST", "/v1/sites", {"name": 5, "time_zone": "UTC"}, 422, "invalid_value", "name", "str"),
    ("POST", "/v1/devices", {"device_id": "a b", "kind": "logger"}, 422, "invalid_value", "device_id", "regex"),
    ("POST", "/v1/devices", {"device_id": "a", "kind": "meter"}, 422, "invalid_value", "kind", "enum"),
    ("POST", "/v1/attachments", {"device_id": "zz", "input": 1}, 422, "invalid_value", "device_id", "zz"),
    ("GET", "/v1/sites?limit=5000", None, 422, "invalid_value", "limit", "1000"),
    ("GET", "/v1/sites?page=2", None, 422, "unknown_field", "page", "cursor"),
    ("GET", "/v1/sites?at=2026-01-01T00:00:00", None, 422, "invalid_value", "at", "timezone"),
    ("GET", "/v1/sites?cursor=rubbish", None, 400, "bad_cursor", "cursor", "without"),
    ("GET", "/v1/sites?limit=2&limit=3", None, 422, "invalid_value", "limit", "twice"),
    ("GET", "/v1/me?x=1", None, 422, "unknown_field", "x", "no parameters"),
    ("GET", "/v1/sites/99999999999999999999", None, 404, "not_found", None, "there is no site"),
    ("GET", "/v2/sites", None, 404, "not_found", None, "/v1/"),
    ("PUT", "/v1/sites", {"name": "A"}, 405, "method_not_allowed", None, "GET, POST"),
    ("GET", "/v1/measurements?resolution=60", None, 422, "missing_field", "from", "from"),
    (
        *("GET", "/v1/measurements?resolution=1&from=2026-01-01T00:00:00Z&until=2026-03-01T00:00:00Z", None),
        *(422, "invalid_value", "until", "31 days"),
    ),
    (
        "GET",
        "/v1/readings?from=2026-01-01T00:00:00Z&until=2026-01-02T00:00:00Z",
        None,
        422,
        "missing_field",
        "meter_id",
        "site_id",
    ),
]


async def test_mistakes_get_an_answer_that_says_how_to_mend_them(api: Api) -> None:
    token = await api.token(1)
    for method, path, body, status, code, field, hint in MISTAKES:
        got = await api.call(method, path, token=token, body=body)
        assert (got.status, got.json["code"], got.json.get("field")) == (status, code, field), (path, got.json)
        assert hint in got.json["detail"], got.json
    broken = await api.call("POST", "/v1/sites", token=token, data="{", headers={"Content-Type": "application/json"})
    assert (broken.status, broken.json["code"]) == (400, "malformed_body")
    for text in (
        '{"name": "a\\u0000", "time_zone": "UTC"}',
        '{"name": "\\ud800", "time_zone": "UTC"}',
        "[]",
        "null",
        "",
    ):
        got = await api.call("POST", "/v1/sites", token=token, data=text, headers={"Content-Type": "application/json"})
        assert got.status in {400, 422}, (text, got)
    for path in (
        "/v1/devices/a%00b",
        "/v1/sites?search=%00",
        "/v1/sites?search=%ff",
        "/v1/devices/%2F",
        "/v1/runs/%00",
    ):
        assert (await api.get(path, token)).status in {200, 404, 422}, path
    for basic in ("AA==", "Og==", "!!", "AAA6AA=="):
        form_body = {"grant_type": "client_credentials"}
        got = await api.call("POST", "/oauth/token", headers={"Authorization": f"Basic {basic}"}, data=form_body)
        assert got.status in {400, 401}, (basic, got)
    form = await api.call("POST", "/v1/sites", token=token, data="{}", headers={"Content-Type": "text/plain"})
    assert (form.status, form.json["code"]) == (415, "unsupported_media_type")
    long = await api.call("POST", "/v1/sites", token=token, body={"name": "x" * 300_000, "time_zone": "UTC"})
    assert (long.status, long.json["code"]) == (413, "body_too_large")
    options = await api.call("OPTIONS", "/v1/sites", headers={"Origin": "https://evil.example"})
    assert options.status == 405


async def test_a_meters_settings_must_agree(api: Api) -> None:
    token = await api.token(1)
    site = (await _post(api, token, "/v1/sites", {"name": "A", "time_zone": "UTC"})).json["site_id"]
    base = {"name": "M", "meter_type": "Water", "site_id": site, "unit": "m3", "units_per_pulse": "1"}
    for change, field in (
        ({"unit": "kWh"}, "unit"),
        ({"units_per_pulse": "0"}, "units_per_pulse"),
        ({"units_per_pulse": 1.5}, "units_per_pulse"),
        ({"calorific_value": "10"}, "calorific_value"),
        ({"meter_type": "Steam"}, "meter_type"),
        ({"site_id": 77}, "site_id"),
        ({"cadence_minutes": 7}, "cadence_minutes"),
    ):
        got = await _post(api, token, "/v1/meters", {**base, **change})
        assert (got.status, got.json["field"]) == (422, field), got.json
    legacy = await _post(api, token, "/v1/meters", {**base, "meter_type": "Electric Pulse Meter", "unit": "kWh"})
    assert (legacy.status, legacy.json["meter_type"], legacy.json["utility"]) == (
        201,
        "Electric Pulse Meter",
        "electricity",
    )


async def test_the_data_sample_is_the_same_for_everybody(api: Api) -> None:
    token = await api.token(1, "viewer")
    other = await api.token(1, "viewer", name="another")
    for data in ("measurements", "catalog", "pan42_measurements", "meters_measurements"):
        for form, media_type in (("csv", "text/csv"), ("json", "application/json")):
            path = f"/v1/data-sample?data={data}&format={form}"
            one, two = await api.get(path, token), await api.get(path, other)
            assert one.content == two.content
            assert one.headers["Content-Type"].startswith(media_type)
    header = (await api.get("/v1/data-sample?data=meters_measurements&format=csv", token)).content.splitlines()[0]
    assert header == (
        b"meter_id,meter_type,meter_name,meter_unit,measurement_time(UTC),resolution(minutes),site_id,site_name,"
        b"power(W),energy(Wh),flow,volume"
    )
    assert {one.name for one in ENDPOINTS if one.path.startswith("/v1/data-sample")} == {"show_data_sample"}
