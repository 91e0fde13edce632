"""Who may do what: every route by no token, a bad one, an expired one, wrong scopes, other organizations' ids."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.api.http.endpoint import Endpoint
from services.api.http.routes.every import ENDPOINTS
from services.api.signing_keys import SigningKeys
from services.platform.clock import SystemClock
from services.platform.postgres import connect_pool
from services.platform.secrets import Vault, read_keys
from tests.support.api import Api, running_api
from tests.support.planted import planted
from tests.support.seed import seed_catalog

GUARDED = [endpoint for endpoint in ENDPOINTS if endpoint.scope is not None or endpoint.any_caller]
SCOPED = [endpoint for endpoint in ENDPOINTS if endpoint.scope is not None]
IDS = {
    "site_id": "1",
    "meter_id": "1",
    "device_id": "LG-0",
    "user_id": "1",
    "client_id": "mp-first",
    "job_id": "1",
    "test_id": "1",
    "run_id": "job1-20261120T100000Z",
    "export_id": "1",
    "user_name": "first",
    "organization_id": "1",
}
"""Of the first organization."""
BODIES: dict[str, Any] = {
    "create_user": {"email": "x@example.org", "name": "X", "password": planted("x"), "role": "viewer"},
    "edit_user": {"name": "Y"},
    "create_client": {"name": "X", "role": "viewer"},
    "create_client_of": {"name": "X", "role": "viewer"},
    "create_organization": {"name": "X"},
    "create_account": {"name": "X"},
    "create_site": {"name": "X", "time_zone": "UTC"},
    "edit_site": {"name": "X"},
    "create_device": {"device_id": "X-1", "kind": "logger"},
    "edit_device": {"kind": "logger"},
    "end_device": {},
    "attach": {"device_id": "LG-0", "input": 1, "meter_id": 1},
    "create_meter": {"name": "X", "meter_type": "Water", "site_id": 1, "unit": "m3", "units_per_pulse": "1"},
    "edit_meter": {"name": "X"},
    "create_job": {
        "name": "X",
        "frequency": "hour",
        "resolution_minutes": 60,
        "destination": {"transport": "https", "url": "https://example.org/in"},
    },
    "edit_job": {"name": "X"},
    "create_folder_account": {"user_name": "second", "password": "correct horse battery"},
    "set_folder_password": {"password": "correct horse battery"},
    "add_folder_key": {
        "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIISXiopPyvTaUDKpElNmVn/jhUiwlCGxDQAZFRTW7SYk"
    },
    "withdraw_folder_key": {"fingerprint": "SHA256:x"},
    "duplicate_job": {"name": "X"},
    "create_export": {"from": "2026-11-20T10:00:00Z", "until": "2026-11-20T11:00:00Z", "if_full": "wait"},
    "ask_job": {"kind": "retry"},
    "approve_host_key": {"test_id": 1, "fingerprint": "SHA256:x"},
    "withdraw_host_key": {"fingerprint": "SHA256:x"},
}
QUERIES = {
    "list_measurements": "?from=2026-01-01T00:00:00Z&until=2026-01-02T00:00:00Z&resolution=60",
    "list_readings": "?from=2026-01-01T00:00:00Z&until=2026-01-02T00:00:00Z&meter_id=1",
    "dry_run_job": "?slot=2026-01-01T00:00:00Z",
    "show_data_sample": "?data=catalog&format=csv",
}
FOREIGN_IN_BODY = {"attach", "create_meter"}
_CSV = b"name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input\nW,Water,m3,1,S,L-9,logger,1\n"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """
        INSERT INTO organization (organization_id, name, revision) VALUES (2, 'Other', 1);
        INSERT INTO user_account (user_id, organization_id, email, name, password_hash, role, created_at)
        VALUES (1, 1, 'a@example.org', 'A', 'none', 'admin', now());
        INSERT INTO api_client (client_id, organization_id, name, secret_sha256, role, created_at)
        VALUES ('mp-first', 1, 'First', '', 'viewer', now());
        INSERT INTO export_job (job_id, organization_id, starts_at) VALUES (1, 1, '2026-11-20T10:00Z');
        INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, frequency_minutes,
                                        resolution_minutes, transport, transport_settings)
        VALUES (1, 1, 1, '2026-11-20T10:00Z', 'Hourly', 'meters_measurements', 60, 60, 'https',
                '{"url": "https://example.org/"}');
        INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state)
        VALUES (1, 1, '2026-11-20T10:00Z', '2026-11-20T11:00Z', 1, 1, 'planned');
        INSERT INTO dropbox_account (user_name, organization_id) VALUES ('first', 1);
        INSERT INTO manual_export (organization_id, requested_by, range_start, range_end, resolution_minutes, format,
                                   catalog_revision)
        VALUES (1, 'client:mp-first', '2026-11-20T10:00Z', '2026-11-20T11:00Z', 15, 'csv', 1);
        SELECT setval(pg_get_serial_sequence('export_job', 'job_id'), 100);
        SELECT setval(pg_get_serial_sequence(name, name || '_id'), 100)
        FROM unnest(ARRAY['organization', 'site', 'meter']) name;
        SELECT setval(pg_get_serial_sequence('user_account', 'user_id'), 100);
        """
    )
    await connection.close()
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def _try(api: Api, endpoint: Endpoint, token: str | None) -> tuple[int, str]:
    """Make a request that would be good for whoever may make it; return the status and the problem's code."""
    path = endpoint.path
    for name, value in IDS.items():
        path = path.replace(f"{{{name}}}", value)
    headers = {"If-Match": '"none"'} if endpoint.has_etag and endpoint.changes and not endpoint.is_create else {}
    data = None
    if endpoint.body_form == "csv":
        data, headers["Content-Type"] = _CSV, "text/csv"
    path += QUERIES.get(endpoint.name, "")
    body = BODIES[endpoint.name] if endpoint.body_form == "json" else None
    got = await api.call(endpoint.method, path, token=token, body=body, headers=headers, data=data)
    is_problem = got.headers.get("Content-Type", "").startswith("application/problem")
    return got.status, got.json["code"] if is_problem else ""


async def _expired(api: Api, tmp_path: Path, client_id: str) -> str:
    """Sign a token that was good an hour ago, with the key of now."""
    minute = timedelta(minutes=1)
    keys = SigningKeys(
        Vault(read_keys(tmp_path / "secret-keys")), "https://api.example.org", minute, 365 * 24 * 60 * minute
    )
    pool = await connect_pool(api.database_url, max_size=1)
    now = SystemClock().now()
    await keys.refresh(pool, now)
    pool.terminate()
    return keys.issue(client_id, 1, "viewer admin", now - 60 * minute)[0]


async def test_no_route_answers_without_a_good_token(api: Api, tmp_path: Path) -> None:
    client_id, _secret = await api.client(1)
    good = await api.token(1)
    head, claims, signature = good.split(".")
    tampered = f"{head}.{claims}.{signature[:-4]}AAAA"
    expired = await _expired(api, tmp_path, client_id)
    for endpoint in GUARDED:
        assert await _try(api, endpoint, None) == (401, "unauthorized"), endpoint.name
        for bad in (tampered, "rubbish", "mps_nobody", expired):
            assert await _try(api, endpoint, bad) == (401, "invalid_token"), endpoint.name


async def test_every_route_needs_its_scope(api: Api) -> None:
    viewer, exporter = await api.token(1, "viewer"), await api.token(1, "viewer", may_export=True)
    admin, operator = await api.token(1, "admin"), await api.token(None, "operator")
    tokens = {"viewer": viewer, "admin": admin, "operator": operator, "exporter": exporter}
    allowed = {
        "viewer": {"viewer", "admin", "exporter"},
        "admin": {"admin"},
        "operator": {"operator"},
        "exporter": {"exporter"},
    }
    for endpoint in SCOPED:
        assert endpoint.scope is not None
        for name, token in tokens.items():
            if name in allowed[endpoint.scope]:
                continue
            assert await _try(api, endpoint, token) == (403, "insufficient_scope"), (endpoint.name, name)


async def test_whoever_is_held_to_sites_reaches_nothing_of_the_whole_organization(api: Api) -> None:
    held = await api.token(1, "admin", site_ids=[1], may_export=True)
    for endpoint in SCOPED:
        if endpoint.is_whole_organization:
            assert await _try(api, endpoint, held) == (403, "organization_wide_only"), endpoint.name


async def test_another_organizations_ids_are_not_found(api: Api) -> None:
    other = await api.token(2, "admin", may_export=True)
    for endpoint in SCOPED:
        if endpoint.scope == "operator":
            continue
        status, code = await _try(api, endpoint, other)
        if "{" in endpoint.path or endpoint.name == "list_readings":
            assert (status, code) == (404, "not_found"), endpoint.name
        elif endpoint.name in FOREIGN_IN_BODY:
            assert (status, code) == (422, "invalid_value"), endpoint.name
        else:
            assert status in {200, 201}, (endpoint.name, code)
    for path, found in (("/v1/sites", "sites"), ("/v1/meters", "meters"), ("/v1/devices", "devices")):
        ids = {str(one) for one in (await api.get(path, other)).json[found]}
        assert not any("LG-0" in one or "North depot" in one or "Meter 1" in one for one in ids)
    assert {one["actor_name"] for one in (await api.get("/v1/audit", other)).json["entries"]} == {"test"}


async def test_a_token_may_ask_for_less_and_ends_with_its_client(api: Api) -> None:
    client_id, secret = await api.client(1, "admin")
    less = (await api.exchange(client_id, secret, "viewer")).json["access_token"]
    assert (await api.get("/v1/users", less)).status == 403
    more = await api.exchange(client_id, secret, "viewer exporter")
    assert (more.status, more.json["error"]) == (400, "invalid_scope")
    admin = await api.token(1)
    assert (await api.call("DELETE", f"/v1/api-clients/{client_id}", token=admin)).status == 204
    assert (await api.get("/v1/sites", less)).status == 401
    assert (await api.exchange(client_id, secret)).status == 401


async def test_a_person_logs_in_and_out_and_is_kept_out(api: Api) -> None:
    admin = await api.token(1)
    new = {"email": "Ann@example.org", "name": "Ann", "password": planted("horse battery"), "role": "viewer"}
    created = await api.call("POST", "/v1/users", token=admin, body=new)
    assert created.status == 201
    assert "correct horse" not in created.content.decode()
    login = {"email": "ann@EXAMPLE.org", "password": new["password"]}
    wrong = await api.call("POST", "/v1/sessions", body={**login, "password": "wrong horse battery"})
    assert (wrong.status, wrong.json["detail"]) == (401, "the e-mail address or the password is wrong")
    session = (await api.call("POST", "/v1/sessions", body=login)).json["session_token"]
    assert (await api.get("/v1/me", session)).json["name"] == "Ann"
    assert (await api.call("DELETE", "/v1/sessions/current", token=session)).status == 204
    assert (await api.get("/v1/me", session)).status == 401
    session = (await api.call("POST", "/v1/sessions", body=login)).json["session_token"]
    path = created.headers["Location"]
    gone = await api.call("DELETE", path, token=admin, headers={"If-Match": created.etag})
    assert gone.status == 204
    assert (await api.get("/v1/me", session)).status == 401
    assert (await api.call("POST", "/v1/sessions", body=login)).status == 401


async def test_what_a_caller_held_to_a_site_sees(api: Api) -> None:
    admin = await api.token(1)
    second = (await api.call("POST", "/v1/sites", token=admin, body={"name": "South", "time_zone": "UTC"})).json[
        "site_id"
    ]
    meter = await api.get("/v1/meters/3", admin)
    moved = await api.call(
        "PATCH", "/v1/meters/3", token=admin, body={"site_id": second}, headers={"If-Match": meter.etag}
    )
    assert moved.status == 200
    held = await api.token(1, "admin", site_ids=[second])
    assert [one["site_id"] for one in (await api.get("/v1/sites", held)).json["sites"]] == [second]
    assert [one["meter_id"] for one in (await api.get("/v1/meters", held)).json["meters"]] == [3]
    assert (await api.get("/v1/meters/1", held)).status == 404
    assert (await api.get("/v1/sites/1/descriptions", held)).status == 404
    away = await api.call("PATCH", "/v1/meters/3", token=held, body={"site_id": 1}, headers={"If-Match": moved.etag})
    assert (away.status, away.json["field"]) == (422, "site_id")


async def test_the_audit_log_says_who_changed_what_and_stays(api: Api) -> None:
    admin = await api.token(1, name="deploy")
    site = await api.get("/v1/sites/1", admin)
    await api.call(
        "PATCH",
        "/v1/sites/1",
        token=admin,
        body={"name": "New depot"},
        headers={"If-Match": site.etag, "X-Request-Id": "r-1"},
    )
    created = await api.call("POST", "/v1/api-clients", token=admin, body={"name": "BI", "role": "viewer"})
    assert created.status == 201
    [client, edit] = (await api.get("/v1/audit", admin)).json["entries"]
    assert (edit["action"], edit["object_id"], edit["actor_name"], edit["request_id"]) == (
        "site.edit",
        "1",
        "deploy",
        "r-1",
    )
    assert (edit["before"]["name"], edit["after"]["name"]) == ("North depot", "New depot")
    assert client["after"]["client_id"] == created.json["client_id"]
    connection = await asyncpg.connect(api.database_url)
    everything = str(await connection.fetch("SELECT * FROM audit_entry"))
    assert created.json["client_secret"] not in everything
    for statement in ("UPDATE audit_entry SET actor = 'x'", "DELETE FROM audit_entry", "TRUNCATE audit_entry"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await connection.execute(statement)
    await connection.close()
