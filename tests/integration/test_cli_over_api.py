"""`meterpost --url`: the same commands over the HTTP API, with the same tables, JSON and exit codes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.local.ports import free_port
from tests.support.api import Api, running_api
from tests.support.command import Meterpost, Outcome
from tests.support.planted import MARKER
from tests.support.seed import seed_catalog

CREATE = ("jobs", "create", "--name", "Hourly", "--frequency", "hour", "--resolution", "60", "--all-sites")
TO = ("--url", "https://example.org/in")


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def remote(api: Api, folder: Path, *, may_export: bool = True) -> Meterpost:
    """Return a command that knows the API and a client, and no database."""
    client_id, secret = await api.client(1, "admin", may_export=may_export)
    (folder / "client.json").write_text(json.dumps({"client_id": client_id, "client_secret": secret}))
    return Meterpost(folder, {"METERPOST_API_URL": api.url, "METERPOST_API_CREDENTIALS_FILE": "client.json"})


async def run(meterpost: Meterpost, *arguments: str, code: int = 0) -> Outcome:
    """Run the command while the API of this process goes on."""
    outcome = await asyncio.to_thread(meterpost, *arguments)
    assert outcome.code == code, (outcome.out, outcome.err)
    return outcome


async def test_a_job_from_its_creation_to_its_end(api: Api, tmp_path: Path) -> None:
    meterpost = await remote(api, tmp_path)
    (tmp_path / "token").write_text(f"{MARKER}\n")
    created = (await run(meterpost, *CREATE, *TO, "--auth", "bearer", "--secret", "token=file:token", "--json")).json
    job = str(created["job_id"])
    assert (created["name"], created["transport_settings"]["secrets"]) == ("Hourly", {"token": "set"})
    local = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": api.database_url})
    for command in (("jobs", "list"), ("jobs", "show", job), ("runs", "list"), ("jobs", "requests", job)):
        here, there = await run(meterpost, *command), await run(local, *command)
        if command[1] != "show":
            assert here.out == there.out
        else:
            told = [[" ".join(line.split()) for line in one.out.splitlines()] for one in (here, there)]
            assert told[0] == told[1][:-1]  # the platform's clock is an operator's matter
        here, there = await run(meterpost, *command, "--json"), await run(local, *command, "--json")
        expected = there.json
        if command[1] == "show":
            expected.pop("platform_clock")
        assert here.json == expected
    edited = (await run(meterpost, "jobs", "edit", job, "--name", "Renamed", "--frequency", "day", "--json")).json
    assert (edited["changed"], edited["name"], edited["frequency"]) == (True, "Renamed", "day")
    assert edited["transport_settings"]["secrets"] == {"token": "set"}
    assert "Nothing changed" in (await run(meterpost, "jobs", "edit", job, "--name", "Renamed")).out
    moved = (await run(meterpost, "jobs", "edit", job, "--url", "https://example.com/new", "--json")).json
    assert (moved["transport_settings"]["url"], moved["transport_settings"]["auth"]) == (
        "https://example.com/new",
        "bearer",
    )
    assert "Paused job" in (await run(meterpost, "jobs", "pause", job)).out
    assert "paused already" in (await run(meterpost, "jobs", "pause", job)).out
    assert "Resumed job" in (await run(meterpost, "jobs", "resume", job)).out
    assert "requests" in (await run(meterpost, "runs", "run-now", job)).out
    assert (await run(meterpost, "jobs", "requests", job, "--json")).json["requests"][0]["kind"] == "run_now"
    assert "Deleted job" in (await run(meterpost, "jobs", "delete", job)).out
    assert f"job {job}" in (await run(meterpost, "jobs", "show", job, code=2)).err


async def test_an_sftp_job_gets_its_key_here_and_only_the_public_half_is_shown(api: Api, tmp_path: Path) -> None:
    meterpost = await remote(api, tmp_path)
    created = await run(meterpost, *CREATE, "--sftp", "u@sftp.example.org", "--directory", "/in")
    assert "ssh-ed25519 AAAA" in created.out
    [job] = (await run(meterpost, "jobs", "list", "--json")).json["jobs"]
    assert job["transport_settings"]["directory"] == "/in"
    assert job["transport_settings"]["public_key"] in created.out
    assert job["transport_settings"]["secrets"] == {"private_key": "set"}
    edited = (await run(meterpost, "jobs", "edit", str(job["job_id"]), "--directory", "/out", "--json")).json
    assert edited["transport_settings"]["public_key"] == job["transport_settings"]["public_key"]
    assert edited["transport_settings"]["directory"] == "/out"


async def test_runs_and_measurements(api: Api, tmp_path: Path) -> None:
    meterpost = await remote(api, tmp_path)
    await run(meterpost, *CREATE, *TO, "--start", "2026-11-20T10:00:00Z")
    connection = await asyncpg.connect(api.database_url)
    await connection.execute(
        """
        INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state)
        VALUES (1, 1, '2026-11-20T10:00Z', '2026-11-20T11:00Z', 1, 1, 'planned'),
               (1, 1, '2026-11-20T09:00Z', '2026-11-20T10:00Z', 1, 1, 'failed');
        CREATE TABLE measurement_60m_all PARTITION OF measurement_60m FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
        INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                 intervals_expected, pulses, energy_wh, volume)
        SELECT w, 1, 1, 60, 60, 60, 7, 7.25, NULL
        FROM generate_series('2026-11-20T10:00Z'::timestamptz, '2026-11-20T13:00Z', '1 hour') w;
        """
    )
    await connection.close()
    local = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": api.database_url})
    for command in (("runs", "list"), ("runs", "show", "job1-20261120T100000Z")):
        assert (await run(meterpost, *command)).out == (await run(local, *command)).out
        assert (await run(meterpost, *command, "--json")).json == (await run(local, *command, "--json")).json
    assert "waits to be sent" in (await run(meterpost, "runs", "give-up", "job1-20261120T100000Z", code=2)).err
    for which in (("job1-20261120T090000Z",), ("--job", "1", "--before", "2026-11-20T10:00:00Z")):
        command = ("runs", "give-up", *which)
        assert (await run(meterpost, *command)).out == (await run(local, *command)).out
    asked = (await run(meterpost, "jobs", "requests", "1", "--json")).json["requests"]
    assert [one["kind"] for one in asked] == ["give_up"] * 4
    span = ("measurements", "list", "--from", "2026-11-20T11:00:00Z", "--to", "2026-11-21T00:00:00Z")
    found = (await run(meterpost, *span, "--json")).json["measurements"]
    assert [(one["window_start"], one["energy_wh"]) for one in found] == [
        (f"2026-11-20T{hour}:00:00Z", "7.25") for hour in (11, 12, 13)
    ]
    assert "7.25" in (await run(meterpost, *span)).out
    csv = (await run(meterpost, *span, "--csv")).out.splitlines()
    assert (csv[0].split(",")[0], len(csv)) == ("meter_id", 4)
    assert "lies between" in (await run(meterpost, *span[:2], "--from", span[5], "--to", span[3], code=2)).err


async def test_what_goes_wrong_is_said_with_an_exit_code(api: Api, tmp_path: Path) -> None:
    meterpost = await remote(api, tmp_path, may_export=False)
    assert "exporter" in (await run(meterpost, *CREATE, *TO, code=2)).err
    nobody = Meterpost(tmp_path, {"METERPOST_API_URL": api.url})
    assert "--credentials" in (await run(nobody, "jobs", "list", code=2)).err
    wrong = Meterpost(
        tmp_path,
        {
            "METERPOST_API_URL": api.url,
            "METERPOST_API_CLIENT_ID": "mp-x",
            "METERPOST_API_CLIENT_SECRET": "not-the-secret",
        },
    )
    refused = await run(wrong, "jobs", "list", code=2)
    assert "mp-x" in refused.err
    assert "not-the-secret" not in refused.err
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert (
        "does not answer"
        in (await run(meterpost, "--url", nowhere, "--credentials", "client.json", "jobs", "list", code=1)).err
    )
    assert "in the clear" in (await run(meterpost, "--url", "http://example.org", "jobs", "list", code=2)).err
    own = await run(meterpost, "--url", api.url, "ingest", "status", code=2)
    assert "leave out --url" in own.err
    both = await run(meterpost, "--url", api.url, "jobs", "list", "--database", api.database_url, code=2)
    assert "leave out --database" in both.err
    beside = await run(meterpost, "jobs", "list", "--database", api.database_url)
    assert "no export jobs yet" in beside.out
    assert "--url" in (await run(nobody, "measurements", "list", "--help")).out
