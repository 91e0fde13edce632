"""Catalog jobs as users make them: over HTTP, by the command, and what is refused with a sentence."""

import asyncio
import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.local.certificates import ensure_certificates
from services.platform.clock import SystemClock
from tests.integration.test_cli_over_api import remote, run
from tests.integration.test_requests import until_states
from tests.support.api import Api, running_api
from tests.support.command import Meterpost
from tests.support.exports import DAY, Exports, at, delivering
from tests.support.file_servers import in_process_sftp
from tests.support.receiver import ScriptedReceiver

JOB: dict[str, Any] = {
    "name": "Assets",
    "data": "catalog",
    "frequency": "day",
    "destination": {"transport": "https", "url": "https://example.org/in"},
    "manifest": True,
    "starts_at": "2026-11-20T10:00:00Z",
}
CREATE = ("jobs", "create", "--name", "Assets", "--data", "catalog", "--all-sites")
TO = ("--url", "https://example.org/in")
ONCE_A_DAY = "a catalog is exported once a day; allowed frequency: day"
NO_RESOLUTION = "a catalog has no windows and so no resolution; leave the resolution out"


async def test_a_catalog_job_over_http(exports: Exports, tmp_path: Path) -> None:
    await exports.seed(meters=1)
    async with running_api(exports.url, tmp_path) as api:
        token = await api.token(1, "viewer", may_export=True)
        made = await api.call("POST", "/v1/jobs", token=token, body=JOB)
        assert made.status == 201, made
        path = made.headers["Location"]
        assert (made.json["data"], made.json["frequency"], made.json["resolution_minutes"]) == ("catalog", "day", None)
        slots = (await api.get(f"{path}/next-slots", token)).json["slots"]
        assert slots[0] == {
            "start": "2026-11-20T00:00:00Z", "end": "2026-11-21T00:00:00Z", "due_at": "2026-11-21T00:00:00Z",
        }  # fmt: skip
        assert slots[4]["end"] == "2026-11-25T00:00:00Z"
        edited = await api.call(
            "PATCH", path, token=token, headers={"If-Match": made.etag},
            body={"name": "Renamed", "site_ids": [1], "resolution_minutes": None},
        )  # fmt: skip
        assert (edited.json["name"], edited.json["site_ids"], edited.json["data"]) == ("Renamed", [1], "catalog")
        copied = await api.call("POST", f"{path}/duplicate", token=token, body={"name": "Copy"})
        assert (copied.json["data"], copied.json["resolution_minutes"]) == ("catalog", None)
        for change, field, said in (
            ({"frequency": "hour"}, "frequency", ONCE_A_DAY),
            ({"resolution_minutes": 60}, "resolution_minutes", NO_RESOLUTION),
            ({"data": "meters_measurements"}, "resolution_minutes", "measurements need a resolution"),
            ({"data": "meters_measurements", "frequency": "hour"}, "resolution_minutes", "5, 15, 60"),
        ):
            got = await api.call("POST", "/v1/jobs", token=token, body={**JOB, **change})
            assert (got.status, got.json["field"]) == (422, field), got.json
            assert said in got.json["detail"]
        unknown = await api.call("POST", "/v1/jobs", token=token, body={**JOB, "data": "pan42_measurements"})
        assert (unknown.status, unknown.json["field"]) == (422, "data")
        for body, field, said in (
            ({"frequency": "5min"}, "frequency", ONCE_A_DAY),
            ({"resolution_minutes": 15}, "resolution_minutes", NO_RESOLUTION),
        ):
            tagged = {"If-Match": edited.etag}
            got = await api.call("PATCH", path, token=token, body=body, headers=tagged)
            assert (got.status, got.json["field"], got.json["detail"]) == (422, field, said)


async def test_a_dry_run_is_what_is_delivered_then(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], tmp_path: Path
) -> None:
    await exports.seed(meters=3_000, sites=30)
    await exports.attach()
    job_id = await exports.add_catalog_job(to)
    chosen = await exports.add_catalog_job(to, sites=[3])
    await exports.clock(at(12))
    async with running_api(exports.url, tmp_path) as api:
        token = await api.token(1, "viewer")
        tried, few = [
            (await api.get(f"/v1/jobs/{job}/dry-run?slot=2026-11-20T10:20:00Z", token)).json for job in (job_id, chosen)
        ]
        assert (tried["slot_end"], tried["is_closed"], tried["rows"]) == ("2026-11-21T00:00:00Z", False, 6_781)
        assert json.loads(tried["first_rows"][0])["name"] == "Site 1"
        assert len(tried["first_rows"]) == 10
        assert receiver.received == []
        await exports.clock(DAY + timedelta(days=1))
        async with delivering(exports.url):
            await until_states(exports, job_id, ["delivered"])
            await until_states(exports, chosen, ["delivered"])
        assert (await api.get(f"/v1/jobs/{job_id}/dry-run?slot=2026-11-20T10:20:00Z", token)).json["is_closed"] is True
        [shown] = (await api.get(f"/v1/runs?job_id={job_id}", token)).json["runs"]
        assert (shown["state"], shown["rows"], shown["intervals_expected"]) == ("delivered", 6_781, None)
    by_job = {job: [r for r in receiver.accepted if r.headers["Meterpost-Job"] == str(job)] for job in (job_id, chosen)}
    for job, dry in ((job_id, tried), (chosen, few)):
        assert [part["sha256"] for part in dry["parts"]] == [
            hashlib.sha256(request.body).hexdigest() for request in by_job[job]
        ]
        assert [part["rows"] for part in dry["parts"]] == [int(r.headers["Meterpost-Rows"]) for r in by_job[job]]


async def test_an_empty_catalog_is_shown_without_intervals(
    exports: Exports, to: dict[str, Any], tmp_path: Path
) -> None:
    await exports.execute("INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Test', 1)")
    job_id = await exports.add_catalog_job(to)
    await exports.clock(DAY + timedelta(days=1))
    async with delivering(exports.url):
        await until_states(exports, job_id, ["empty"])
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": exports.url})
    [found] = (await run(meterpost, "runs", "list", "--json")).json["runs"]
    shown = await run(meterpost, "runs", "show", found["run"])
    assert "empty" in shown.out
    assert "Intervals" not in shown.out


@pytest.mark.parametrize("over_api", [False, True], ids=["database", "api"])
async def test_a_catalog_job_by_the_command(exports: Exports, tmp_path: Path, *, over_api: bool) -> None:
    await exports.seed(meters=1)
    await exports.clock(at(15))
    async with running_api(exports.url, tmp_path) as api:
        meterpost = await _command(api, tmp_path, over_api=over_api)
        said = (await run(meterpost, *CREATE, *TO)).out
        assert "the catalog, every day, all sites" in " ".join(said.split())
        assert "2026-11-20 00:00" in said.replace("T", " ")
        [job] = (await run(meterpost, "jobs", "list", "--json")).json["jobs"]
        assert (job["data"], job["frequency"], job["resolution_minutes"]) == ("catalog", "day", None)
        assert "catalog" in (await run(meterpost, "jobs", "list")).out
        assert "the catalog, every day" in (await run(meterpost, "jobs", "show", "1")).out
        for options, refusal in (
            (("--frequency", "hour"), ONCE_A_DAY),
            (("--resolution", "60"), NO_RESOLUTION),
            (("--frequency", "week"), "no export frequency is called 'week'"),
            (("--data", "meters_measurements"), "a job needs --frequency, --resolution"),
            (("--data", "everything"), "everything"),
        ):
            refused = await run(meterpost, *CREATE, *TO, *options, code=2)
            assert refusal in " ".join(refused.err.split()), refused.err
        for option, value, refusal in (("--frequency", "5min", ONCE_A_DAY), ("--resolution", "15", NO_RESOLUTION)):
            refused = await run(meterpost, "jobs", "edit", "1", option, value, code=2)
            assert refusal in " ".join(refused.err.split())
        edited = (await run(meterpost, "jobs", "edit", "1", "--site", "1", "--json")).json
        assert (edited["changed"], edited["site_ids"], edited["data"]) == (True, [1], "catalog")


async def _command(api: Api, folder: Path, *, over_api: bool) -> Meterpost:
    if over_api:
        return await remote(api, folder)
    return Meterpost(folder, {"METERPOST_DATABASE_URL": api.database_url})


async def test_what_arrived_is_proved_sound_by_the_receivers_check(exports: Exports, tmp_path: Path) -> None:
    await exports.seed(meters=6_000, sites=3, name='=Meter, "large"')
    await exports.attach()

    certificates = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    meterpost = Meterpost(tmp_path, {})
    async with in_process_sftp(by_key=True)(tmp_path, certificates) as files:
        job_id = await exports.add_catalog_job(dict(files.settings), transport="sftp")
        await exports.execute("UPDATE export_job_version SET manifest = true")
        await exports.closed(15, at(9), opened_at=at(8))
        await exports.clock(DAY + timedelta(days=2))
        async with delivering(exports.url, transport="sftp"):
            await until_states(exports, job_id, ["delivered"] * 2, 30)
        checked = await run(meterpost, "receiver", "check", str(files.folder), "--json")
        [job] = checked.json["jobs"]
        assert (job["runs"], job["parts"], job["manifests"], checked.json["difference_count"]) == (2, 4, 2, 0)
        second = next(path for path in sorted(files.folder.iterdir()) if path.name.endswith("_2of2.csv"))
        whole = second.read_bytes()
        for changed, what in (
            (whole.replace(b"kWh", b"m3", 1), "hash"),
            (b"".join(whole.splitlines(keepends=True)[:-1]), "rows"),
            (whole[:-1], "form"),
            (second.with_name(second.name.replace("_2of2", "_1of2")).read_bytes(), "row_order"),
        ):
            await asyncio.to_thread(second.write_bytes, changed)
            told = await run(meterpost, "receiver", "check", str(files.folder), "--settle", "0", "--json", code=6)
            assert what in told.json["counts"], (what, told.json)
