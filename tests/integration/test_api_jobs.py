"""Export jobs over HTTP: settings, secrets, states, runs, requests, dry runs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.api.job_queries import find_job
from services.core.transport_secrets import job_place
from services.platform.postgres import connect_pool, transaction
from services.platform.secrets import Vault, read_keys
from tests.support.api import Api, running_api
from tests.support.seed import seed_catalog

JOB: dict[str, Any] = {
    "name": "Hourly meters",
    "frequency": "hour",
    "resolution_minutes": 60,
    "destination": {"transport": "https", "url": "https://example.org/in", "auth": "bearer"},
    "secrets": {"token": "s3cret-token"},
    "starts_at": "2026-11-20T10:00:00Z",
}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def test_a_job_from_its_creation_to_its_end(api: Api, tmp_path: Path) -> None:
    token = await api.token(1, "viewer", may_export=True)
    created = await api.call("POST", "/v1/jobs", token=token, body=JOB)
    assert created.status == 201, created
    path, job = created.headers["Location"], created.json
    assert (job["state"], job["secrets"], job["frequency"]) == ("active", ["token"], "hour")
    assert job["destination"] == {"transport": "https", "url": "https://example.org/in", "auth": "bearer"}
    assert "s3cret" not in created.content.decode()
    edited = await api.call(
        "PATCH", path, token=token, body={"frequency": "day", "secrets": {"signing_secret": f"whsec_{'A' * 44}"}},
        headers={"If-Match": created.etag},
    )  # fmt: skip
    assert (edited.status, edited.json["version"]) == (200, 2), edited
    assert edited.json["secrets"] == ["signing_secret:1", "token"]
    copied = await api.call("POST", f"{path}/duplicate", token=token, body={"name": "Copy"})
    assert (copied.json["name"], copied.json["secrets"]) == ("Copy", ["signing_secret:1", "token"])
    vault = Vault(read_keys(tmp_path / "secret-keys"))
    pool = await connect_pool(api.database_url, max_size=1)
    async with transaction(pool) as connection:
        stored = await find_job(connection, 1, copied.json["job_id"])
    pool.terminate()
    sealed = stored.settings.transport_settings["sealed"]["token"]
    assert vault.open(sealed, job_place(1, copied.json["job_id"], "token")) == "s3cret-token"
    paused = await api.call("POST", f"{path}/pause", token=token)
    assert paused.json["state"] == "paused"
    assert [one["job_id"] for one in (await api.get("/v1/jobs?state=paused", token)).json["jobs"]] == [job["job_id"]]
    assert (await api.call("POST", f"{path}/resume", token=token)).json["state"] == "active"
    now = await api.get(path, token)
    assert (await api.call("DELETE", path, token=token, headers={"If-Match": now.etag})).status == 204
    assert (await api.get(path, token)).status == 404
    admin = await api.token(1)
    log = await api.get("/v1/audit", admin)
    actions = [one["action"] for one in log.json["entries"]]
    assert actions == ["job.delete", "job.resume", "job.pause", "job.create", "job.edit", "job.create"]
    assert "s3cret" not in log.content.decode()


async def test_lists_search_filter_sort_and_page(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    for name in ("beta", "Alpha", "gamma", "alpha two"):
        await api.call("POST", "/v1/jobs", token=token, body={**JOB, "name": name})
    seen, path = [], "/v1/jobs?sort=name&limit=1"
    while path:
        got = await api.get(path, token)
        seen += [one["name"] for one in got.json["jobs"]]
        link = got.headers.get("Link")
        path = link[1 : link.index(">")] if link else ""
    assert seen == ["Alpha", "alpha two", "beta", "gamma"]
    found = (await api.get("/v1/jobs?search=ALPHA", token)).json["jobs"]
    assert [one["name"] for one in found] == ["Alpha", "alpha two"]
    assert (await api.get("/v1/jobs?transport=sftp", token)).json["jobs"] == []


async def test_only_legal_settings(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    for change, status, field, hint in (
        ({"frequency": "5min"}, 422, "resolution_minutes", "1, 5"),
        ({"frequency": "day", "resolution_minutes": 5}, 422, "resolution_minutes", "15, 60"),
        ({"destination": {"transport": "https", "url": "http://example.org"}}, 409, None, "https://"),
        ({"destination": {"transport": "carrier"}}, 422, "destination.transport", "carrier"),
        ({"destination": {"transport": "https", "uri": "x"}}, 422, "destination.uri", "uri"),
        ({"secrets": {}}, 409, None, "token"),
        ({"site_ids": [99]}, 409, None, "99"),
        ({"site_ids": []}, 422, "site_ids", "length"),
    ):
        got = await api.call("POST", "/v1/jobs", token=token, body={**JOB, **change})
        assert (got.status, got.json.get("field")) == (status, field), got.json
        assert hint in got.json["detail"], got.json
    sftp = {"transport": "sftp", "host": "sftp.example.org", "user": "meters"}
    made = await api.call("POST", "/v1/jobs", token=token, body={**JOB, "destination": sftp, "secrets": {}})
    assert made.status == 201, made
    assert made.json["public_key"].startswith("ssh-ed25519 ")
    assert (made.json["secrets"], "PRIVATE" in made.content.decode()) == (["private_key"], False)
    held = await api.token(1, "viewer", may_export=True, site_ids=[1])
    everywhere = await api.call("POST", "/v1/jobs", token=held, body=JOB)
    assert (everywhere.status, everywhere.json["field"]) == (422, "site_ids")
    assert (await api.get(made.headers["Location"], held)).status == 404
    assert (await api.call("POST", "/v1/jobs", token=held, body={**JOB, "site_ids": [1]})).status == 201


async def test_slots_runs_and_requests(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    created = await api.call("POST", "/v1/jobs", token=token, body=JOB)
    path, job_id = created.headers["Location"], created.json["job_id"]
    slots = (await api.get(f"{path}/next-slots", token)).json["slots"]
    assert len(slots) == 5
    assert slots[0] == {
        "start": "2026-11-20T10:00:00Z",
        "end": "2026-11-20T11:00:00Z",
        "due_at": "2026-11-20T11:05:00Z",
    }
    assert [one["start"] for one in slots[1:]] == [one["end"] for one in slots[:-1]]
    connection = await asyncpg.connect(api.database_url)
    await connection.execute(
        """
        INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state,
                                part_count, row_count, byte_count, frozen_at, finished_at)
        SELECT 1, $1, start, start + interval '1 hour', 1, 1, 'delivered', 1, 10, 900, now(), now()
        FROM generate_series('2026-11-20T10:00Z'::timestamptz, '2026-11-20T14:00Z', '1 hour') start
        """,
        job_id,
    )
    await connection.close()
    seen, link = [], "/v1/runs?limit=2"
    while link:
        got = await api.get(link, token)
        seen += [one["run_id"] for one in got.json["runs"]]
        header = got.headers.get("Link")
        link = header[1 : header.index(">")] if header else ""
    assert seen == [f"job{job_id}-20261120T{hour}0000Z" for hour in (14, 13, 12, 11, 10)]
    run = await api.get(f"/v1/runs/{seen[0]}", token)
    assert (run.json["state"], run.json["rows"]) == ("delivered", 10)
    assert (await api.get(f"/v1/runs/{seen[0]}/parts", token)).json == {"parts": []}
    assert (await api.get(f"/v1/runs/{seen[0]}/attempts", token)).json == {"attempts": []}
    for unknown in ("job99-20261120T100000Z", "rubbish", f"job{job_id}-20251120T100000Z"):
        assert (await api.get(f"/v1/runs/{unknown}", token)).status == 404
    asked = await api.call(
        "POST",
        f"{path}/requests",
        token=token,
        body={"kind": "resend", "run_id": seen[0]},
        headers={"Idempotency-Key": "r"},
    )
    assert (asked.status, asked.json["kind"], asked.json["done_at"]) == (202, "resend", None), asked
    again = await api.call(
        "POST",
        f"{path}/requests",
        token=token,
        body={"kind": "resend", "run_id": seen[0]},
        headers={"Idempotency-Key": "r"},
    )
    assert again.json == asked.json
    assert len((await api.get(f"{path}/requests", token)).json["requests"]) == 1
    for body, status, field in (
        ({"kind": "resend"}, 422, "run_id"),
        ({"kind": "backfill", "from": "2026-11-19T00:00:00Z"}, 422, "from"),
        ({"kind": "run_now", "run_id": seen[0]}, 422, "run_id"),
        ({"kind": "retry", "run_id": "job999-20261120T100000Z"}, 422, "run_id"),
        ({"kind": "recover"}, 409, None),
        ({"kind": "explode"}, 422, "kind"),
    ):
        got = await api.call("POST", f"{path}/requests", token=token, body=body)
        assert (got.status, got.json.get("field")) == (status, field), got.json


async def test_failed_runs_are_given_up(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    created = await api.call("POST", "/v1/jobs", token=token, body=JOB)
    path, job_id = created.headers["Location"], created.json["job_id"]
    connection = await asyncpg.connect(api.database_url)
    await connection.execute("INSERT INTO organization (organization_id, name, revision) VALUES (2, 'Other', 1)")
    await connection.execute(
        """
        INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state)
        SELECT 1, $1, start, start + interval '1 hour', 1, 1, CASE WHEN start < '2026-11-20T12:00Z' THEN 'failed'
                                                                   ELSE 'frozen' END
        FROM generate_series('2026-11-20T10:00Z'::timestamptz, '2026-11-20T12:00Z', '1 hour') start
        """,
        job_id,
    )
    runs = [f"job{job_id}-20261120T{hour}0000Z" for hour in (10, 11, 12)]

    async def asked(wanted: str, **body: Any) -> tuple[int, Any]:
        got = await api.call("POST", f"{path}/requests", token=wanted, body={"kind": "give_up", **body})
        return got.status, got.json

    viewer = await api.token(1, "viewer")
    other = await api.token(2, "viewer", may_export=True)
    assert (await asked(viewer, run_id=runs[0]))[0] == 403
    assert (await asked(other, run_id=runs[0]))[0] == 404
    assert await connection.fetchval("SELECT count(*) FROM export_request") == 0
    for body, status, field, words in (
        ({}, 422, "run_id", "run_id, or until"),
        ({"run_id": runs[0], "until": "2026-11-20T12:00:00Z"}, 422, "run_id", "run_id, or until"),
        ({"from": "2026-11-20T10:00:00Z", "until": "2026-11-20T12:00:00Z"}, 422, "from", "leave from out"),
        ({"run_id": runs[2]}, 409, None, "is being sent, or waits to be"),
        ({"run_id": f"job{job_id}-20251120T100000Z"}, 409, None, "there is no run"),
        ({"until": "2026-11-20T10:59:59Z"}, 409, None, "no failed run"),
    ):
        code, problem = await asked(token, **body)
        assert (code, problem.get("field")) == (status, field), problem
        assert words in problem["detail"]
    for body in ({"run_id": runs[0]}, {"run_id": runs[0]}, {"until": "2026-11-20T12:00:00Z"}):
        code, made = await asked(token, **body)
        assert (code, made["kind"], made["done_at"]) == (202, "give_up", None), made
    stored = await connection.fetch("SELECT slot_start, range_start, range_end FROM export_request ORDER BY 1, 3")
    assert [[value and value.hour for value in row] for row in stored] == [[10, None, None]] * 2 + [[None, None, 12]]
    await connection.execute("UPDATE export_run SET state = 'given_up' WHERE state = 'failed'")
    await connection.close()
    listed = (await api.get("/v1/runs?state=given_up", token)).json["runs"]
    assert [(one["run_id"], one["state"]) for one in listed] == [(run, "given_up") for run in (runs[1], runs[0])]
    entries = (await api.get("/v1/audit", await api.token(1))).json["entries"]
    assert [one["action"] for one in entries] == ["job.give_up"] * 3 + ["job.create"]


async def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    connection = await asyncpg.connect(api.database_url)
    await connection.execute(
        """
        CREATE TABLE measurement_x PARTITION OF measurement_15m FOR VALUES FROM ('2026-11-20') TO ('2026-11-22');
        INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                 intervals_expected, pulses, energy_wh)
        SELECT start, n, 1, 15, 15, 15, n, n
        FROM generate_series('2026-11-20T10:00Z'::timestamptz, '2026-11-20T11:30Z', '15 minutes') start,
             generate_series(1, 10) n;
        INSERT INTO window_closed VALUES (15, '2026-11-20T10:00Z', '2026-11-20T11:00Z');
        """
    )
    created = await api.call("POST", "/v1/jobs", token=token, body={**JOB, "resolution_minutes": 15})
    path = created.headers["Location"]
    got = (await api.get(f"{path}/dry-run?slot=2026-11-20T10:20:00Z", token)).json
    assert (got["slot_start"], got["rows"], got["is_closed"]) == ("2026-11-20T10:00:00Z", 40, True)
    [part] = got["parts"]
    assert (part["rows"], part["bytes"]) == (40, got["bytes"])
    assert '"METER_ID":1,' in got["first_rows"][0]
    assert len(got["first_rows"]) == 10
    later = (await api.get(f"{path}/dry-run?slot=2026-11-20T11:20:00Z", token)).json
    assert (later["rows"], later["is_closed"]) == (30, False)
    assert await connection.fetchval("SELECT count(*) FROM export_run") == 0
    await connection.close()
