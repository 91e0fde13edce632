"""Catalog jobs by the real delivery: what is in them, that they are frozen, and when they come."""

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from services.api.request_store import request_backfill, request_resend, request_run_now
from services.core.catalog_content import read_catalog
from services.core.received_requests import check_hash, read_body, read_request
from services.core.schedule import Slot
from services.delivery.catalog_parts import CatalogStore, catalog_body, catalog_parts
from services.delivery.kept_parts import KeptParts
from services.delivery.model import JobKey, Run, Version
from services.local.certificates import ensure_certificates
from services.platform.clock import SystemClock
from services.platform.postgres import Pool
from tests.integration.test_requests import asker, until_done, until_states
from tests.support.exports import DAY, Exports, at, delivering
from tests.support.file_servers import in_process_ftps, in_process_sftp
from tests.support.polling import eventually_async
from tests.support.receiver import Received, ScriptedReceiver, status

SCHEMAS = Path(__file__).parents[2] / "schemas" / "http"
NEXT_DAY = DAY + timedelta(days=1)
RENAME_ALL = """
UPDATE catalog_revision SET revision = revision + 1;
INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse)
SELECT meter_id, '-infinity', (SELECT revision FROM catalog_revision), 'Renamed', 1, unit, 5 FROM meter_configuration;
INSERT INTO site_description SELECT site_id, '-infinity', (SELECT revision FROM catalog_revision), 'Moved', 'UTC'
FROM site;
INSERT INTO input_attachment SELECT device_id, input, valid_from, (SELECT revision FROM catalog_revision), NULL
FROM input_attachment;
INSERT INTO site (site_id, organization_id, revision) VALUES (1000, 1, (SELECT revision FROM catalog_revision));
INSERT INTO site_description SELECT 1000, '-infinity', revision, 'New', 'UTC' FROM catalog_revision;
"""
TRY_AT_ONCE = """
UPDATE export_part SET next_attempt_at = NULL;
UPDATE export_job_progress SET next_attempt_at = now();
"""
LISTS = ("sites", "devices", "inputs", "meters")


def told(requests: Sequence[Received]) -> dict[str, list[dict[str, Any]]]:
    """Return the lists of all parts put together, each part being sound in itself."""
    schema = json.loads((SCHEMAS / "catalog.v1.schema.json").read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
    for request in requests:
        said = read_request(request.headers)
        check_hash(said, request.body)
        read_body(said, request.headers, request.body)
        if said.part is None:
            continue
        body = json.loads(request.body)
        Draft202012Validator(schema).validate(body)
        for name in LISTS:
            found[name] += body[name]
    return found


async def test_a_catalog_is_delivered_when_its_day_is_over(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=8)
    await exports.attach()
    await exports.close_windows(15, at(8), at(9))
    measured = await exports.add_job(to)
    job_id = await exports.add_catalog_job(to, starts_at=at(9))
    await exports.execute("UPDATE export_job_version SET manifest = (data = 'catalog')")
    await exports.clock(at(23, 59))
    async with delivering(exports.url):
        await until_states(exports, measured, ["delivered"])
        assert await exports.states(job_id) == []
        # No window of the day's end is closed: a catalog does not wait for one.
        await exports.clock(NEXT_DAY)
        await until_states(exports, job_id, ["delivered"])
    rows = json.loads(receiver.accepted[0].body)["measurements"]
    part, manifest = receiver.accepted[1:]
    assert part.headers["Meterpost-Filename"] == (
        f"{job_id}-Catalog_catalog_20261120T000000Z_20261121T000000Z_1of1.json"
    )
    assert "Meterpost-Resolution-Minutes" not in part.headers
    assert part.headers["Meterpost-Rows"] == str(2 + 3 + 8 + 8)
    assert json.loads(part.body)["catalog_time"] == "2026-11-21T00:00:00Z"
    catalog = told([part, manifest])
    meters = {meter["id"]: meter for meter in catalog["meters"]}
    sites = {site["id"]: site["name"] for site in catalog["sites"]}
    assert len(rows) == 32
    for row in rows:
        meter = meters[row["METER_ID"]]
        assert (meter["type"], meter["name"], meter["unit"]) == (
            *(row["METER_TYPE"], row["METER_NAME"], row["METER_UNIT"]),
        )
        assert (meter["site_id"], sites[meter["site_id"]]) == (row["SITE_ID"], row["SITE_NAME"])
    assert [device["id"] for device in catalog["devices"]] == ["BR-000001", "LG-000000", "LG-000001"]
    assert {one["meter_id"] for one in catalog["inputs"]} == set(meters)
    assert {one["device_id"] for one in catalog["inputs"]} == {device["id"] for device in catalog["devices"]}
    assert catalog["inputs"][0] == {"device_id": "BR-000001", "input": None, "meter_id": 2, "valid_from": None}
    assert catalog["inputs"][-1]["valid_from"] == "2026-01-01T00:00:00Z"
    said = json.loads(manifest.body)
    schema = json.loads((SCHEMAS / "manifest.v1.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(said)
    assert (said["data"], said["resolution_minutes"], said["completeness"]) == ("catalog", None, None)


async def test_large_catalogs_are_cut_and_frozen_before_an_edit(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2_500, sites=40)
    await exports.attach()
    job_id = await exports.add_catalog_job(to)
    await exports.clock(NEXT_DAY)
    receiver.script.extend([status(200), status(503)])

    async def refused_once() -> bool:
        return len(receiver.received) >= 2

    async with delivering(exports.url, first_retry_seconds=3_600, longest_retry_seconds=3_600):
        await eventually_async(refused_once)
        await until_states(exports, job_id, ["frozen"])
    await exports.execute(RENAME_ALL)
    await exports.execute(TRY_AT_ONCE)
    # Another process, which has nothing of the parts in memory, renders what is left.
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        first = list(receiver.accepted)
        await request_resend(pool, 1, job_id, DAY, asker())
        await eventually_async(lambda: len(receiver.accepted) == 2 * len(first))
    assert [request.headers["Meterpost-Part"] for request in first] == ["1", "2", "3"]
    assert receiver.received[1].body == first[1].body
    assert [(r.part_id, r.body) for r in receiver.accepted[len(first) :]] == [(r.part_id, r.body) for r in first]
    catalog = told(first)
    assert [len(catalog[name]) for name in LISTS] == [40, 626, 2_500, 2_500]
    assert {meter["name"] for meter in catalog["meters"]} == {f"Meter {n}" for n in range(1, 2_501)}
    for name, key in (("sites", "id"), ("devices", "id"), ("meters", "id")):
        ids = [one[key] for one in catalog[name]]
        assert ids == sorted(ids)
    assert all(len(request.body) <= 1_000_000 for request in first)
    stored = await exports.column("SELECT first_record FROM export_part ORDER BY part")
    assert stored[0] == "1:1:"
    assert len(set(stored)) == 3


async def test_rows_that_changed_behind_the_catalogs_back_are_not_sent(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=3)
    job_id = await exports.add_catalog_job(to)
    await exports.clock(NEXT_DAY)
    receiver.otherwise = status(503)
    async with delivering(exports.url, first_retry_seconds=3_600, longest_retry_seconds=3_600):
        await eventually_async(lambda: len(receiver.received) == 1)
        await until_states(exports, job_id, ["frozen"])
    # Nobody may do this; whoever does it is found out.
    await exports.execute("UPDATE meter_configuration SET name = 'Tampered' WHERE meter_id = 2")
    await exports.execute(TRY_AT_ONCE)

    async def stopped() -> bool:
        return (await exports.progress(job_id)).get("stopped_reason") == "rendering_differs"

    async with delivering(exports.url):
        await eventually_async(stopped)
    assert len(receiver.received) == 1


async def test_only_the_chosen_sites_and_what_hangs_there(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=12, sites=3)
    await exports.attach()
    await exports.execute(
        """
        INSERT INTO device VALUES ('LG-IDLE', 1, 'logger', 1), ('LG-NEW', 1, 'logger', 1);
        INSERT INTO input_attachment VALUES
            ('LG-IDLE', 0, '-infinity', 1, 1), ('LG-IDLE', 0, '2026-11-20T01:00Z', 1, NULL);
        """
    )
    chosen = await exports.add_catalog_job(to, sites=[2])
    await exports.clock(NEXT_DAY)
    async with delivering(exports.url):
        await until_states(exports, chosen, ["delivered"])
        everything = await exports.add_catalog_job(to)
        await until_states(exports, everything, ["delivered"])
    catalog, whole = (told([request]) for request in receiver.accepted)
    assert [site["id"] for site in catalog["sites"]] == [2]
    # Meter n is at site n mod 3 + 1.
    assert [meter["id"] for meter in catalog["meters"]] == [1, 4, 7, 10]
    assert sorted(one["meter_id"] for one in catalog["inputs"]) == [1, 4, 7, 10]
    assert {device["id"] for device in catalog["devices"]} == {one["device_id"] for one in catalog["inputs"]}
    # What something once hung on stays; what nothing ever hung on may still be changed and removed, and is in none.
    assert {"LG-IDLE", "LG-NEW"} & {device["id"] for device in whole["devices"]} == {"LG-IDLE"}
    assert len(whole["meters"]) == 12


async def test_records_are_those_in_force_at_the_slots_end_as_known_when_planned(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2, sites=1)
    await exports.attach()
    await exports.execute(
        """
        UPDATE catalog_revision SET revision = 2;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                         calorific_value, register_modulus, cadence_minutes)
        VALUES (1, '2026-11-20T18:00Z', 2, 'Evening', 1, 'm3', 0.00000125, 10.350, 100000, 15),
               (1, '2026-11-21T00:00:01Z', 2, 'Tomorrow', 1, 'm3', 1, NULL, NULL, 1);
        INSERT INTO bridge_attachment VALUES ('BR-000001', 2, '2026-11-20T12:00Z', 2, false);
        INSERT INTO organization VALUES (2, 'Other', 2);
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) VALUES (9, 2, 'Gas', 'gas', 2);
        INSERT INTO device VALUES ('LG-OTHER', 2, 'logger', 2);
        """
    )
    job_id = await exports.add_catalog_job(to)
    await exports.closed(15, at(9), opened_at=at(8))
    await exports.clock(NEXT_DAY)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        before = DAY - timedelta(days=1)
        said = await until_done(pool, job_id, await request_backfill(pool, 1, job_id, before, DAY, asker()))
        assert said == "all slots of the range have runs"
        await until_states(exports, job_id, ["delivered"] * 2)
        # The day before the first window is the earliest: with what was known then, measuring began.
        far = before - timedelta(days=9)
        await until_done(pool, job_id, await request_backfill(pool, 1, job_id, far, before, asker()))
        assert len(await exports.states(job_id)) == 2
    now, then = (told([request]) for request in receiver.accepted)
    assert now["meters"][0] == {
        "id": 1, "name": "Evening", "type": "Heat", "unit": "m3", "site_id": 1, "units_per_pulse": "0.00000125",
        "normalization_factor": "1", "calorific_value": "10.350", "register_modulus": 100000, "cadence_minutes": 15,
        "serial_number": None, "valid_from": "2026-11-20T18:00:00Z",
    }  # fmt: skip
    assert [one["meter_id"] for one in now["inputs"]] == [1]
    assert then["meters"][0]["name"] == "Meter 1"
    assert [one["meter_id"] for one in then["inputs"]] == [2, 1]
    assert receiver.accepted[1].headers["Meterpost-Window-End"] == "2026-11-20T00:00:00Z"
    assert [meter["id"] for meter in now["meters"]] == [1, 2]
    assert "LG-OTHER" not in {device["id"] for device in now["devices"]}


async def test_pages_of_any_size_make_the_same_parts(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=30, sites=4)
    await exports.attach()
    # Sorted as bytes, not as the database's language sorts; two inputs of one device on either side of a page's end.
    await exports.execute(
        "INSERT INTO device (device_id, organization_id, kind, revision) "
        "SELECT name, 1, 'logger', 1 FROM unnest(ARRAY['a', 'Z', 'é', '-']) name"
    )
    await exports.execute(
        "INSERT INTO input_attachment SELECT name, 0, moment, 1, CASE WHEN moment < 'epoch' THEN 1 END "
        "FROM unnest(ARRAY['a', 'é', '-']) name, unnest(ARRAY['-infinity', '2026-11-01Z']::timestamptz[]) moment"
    )
    await exports.execute(
        "INSERT INTO input_attachment SELECT 'Z', n, '-infinity', 1, n + 1 FROM generate_series(0, 9) n"
    )
    run = Run(JobKey(1, 1), Slot(DAY, NEXT_DAY), 1, 1, False, 0, DAY)
    for sites in (None, (2, 3)):
        version = Version(1, DAY, "Catalog", "catalog", 1440, 0, sites, "https", {})
        found = [
            await catalog_parts(CatalogStore(pool, size), asyncio.Semaphore(1), KeptParts(), run, version)
            for size in (1, 7, 10_000)
        ]
        assert found[0] == found[1] == found[2]
        [part] = found[0]
        body = await catalog_body(CatalogStore(pool), run, version, part.rows)
        assert body is not None
        assert hashlib.sha256(body).digest() == part.sha256
        assert read_catalog(".json", body).row_count == part.rows.row_count
        devices = [device["id"] for device in json.loads(body)["devices"]]
        assert devices == sorted(devices, key=str.encode)
        assert ("é" in devices) == (sites is None)


async def test_run_now_ends_the_day_early_and_the_rest_follows(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.clock(at(15, 1) + timedelta(seconds=20))
    job_id = await exports.add_catalog_job(to, starts_at=at(15))
    async with delivering(exports.url):

        async def adopted() -> bool:
            return bool(await exports.progress(job_id))

        await eventually_async(adopted)
        said = await until_done(pool, job_id, await request_run_now(pool, 1, job_id, asker()))
        assert "15:01" in said
        await until_states(exports, job_id, ["delivered"])
        again = await until_done(pool, job_id, await request_run_now(pool, 1, job_id, asker()))
        assert "less than a minute after 2026-11-20T15:01" in again
        await exports.clock(NEXT_DAY + timedelta(days=2))
        await until_states(exports, job_id, ["delivered"] * 4)
    assert [json.loads(request.body)["catalog_time"] for request in receiver.accepted] == [
        "2026-11-20T15:01:00Z", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z",
    ]  # fmt: skip


async def test_an_organization_without_anything_has_empty_runs(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.execute("INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Test', 1)")
    job_id = await exports.add_catalog_job(to)
    await exports.clock(NEXT_DAY)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["empty"])
    assert receiver.received == []


@pytest.mark.parametrize("server", [in_process_sftp(by_key=True), in_process_ftps()], ids=["sftp", "ftps"])
async def test_files_hold_the_same_as_csv(exports: Exports, tmp_path: Path, server: Any) -> None:
    await exports.seed(meters=6_000, sites=3, name="=Meter")
    await exports.attach()
    certificates = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    async with server(tmp_path, certificates) as files:
        job_id = await exports.add_catalog_job({**files.settings, "line_end": "crlf"}, transport=files.transport)
        await exports.execute("UPDATE export_job_version SET manifest = true")
        await exports.clock(NEXT_DAY)
        async with delivering(exports.url, transport=files.transport):
            await until_states(exports, job_id, ["delivered"], 30)
        found = files.files()
    stem = f"{job_id}-Catalog_catalog_20261120T000000Z_20261121T000000Z"
    assert sorted(found) == [f"{stem}_1of2.csv", f"{stem}_2of2.csv", f"{stem}_manifest.json"]
    rows = [
        row
        for name in sorted(found)[:2]
        for row in csv.DictReader(io.StringIO(found[name].decode("utf-8"), newline=""))
    ]
    assert [row["kind"] for row in rows] == sorted(
        (row["kind"] for row in rows), key=["site", "device", "input", "meter"].index
    )
    assert len(rows) == 3 + 1_501 + 6_000 + 6_000
    assert rows[-1]["name"] == "'=Meter 6000"
    assert (rows[-1]["id"], rows[-1]["site_id"], rows[-1]["site_name"]) == ("6000", "1", "Site 1")
    assert {row["format_version"] for row in rows} == {"1"}
    assert {row["catalog_time(UTC)"] for row in rows} == {"2026-11-21T00:00:00Z"}
    parts = json.loads(found[f"{stem}_manifest.json"])["parts"]
    assert [(part["file"], part["bytes"]) for part in parts] == [(name, len(found[name])) for name in sorted(found)[:2]]
