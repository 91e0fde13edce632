"""Manual exports over HTTP: asked for, watched, cancelled, downloaded by links; what is refused says how to mend it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from services.api.export_downloads import PURPOSE
from services.core.manual_export import ExportFormat
from services.platform.clock import SystemClock
from services.platform.postgres import Pool
from services.platform.secrets import Vault, read_keys
from tests.support.api import Api, Got, running_api
from tests.support.closing import T0, many_versions, store_progress, store_versions
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, seed_catalog, wanted_export

END = T0 + timedelta(hours=3)
BODY: dict[str, Any] = {"from": "2026-11-20T10:00:00Z", "until": "2026-11-20T13:00:00Z", "resolution_minutes": 5}


@pytest.fixture
async def exporting(pool: Pool, database_url: str, tmp_path: Path) -> Exporting:
    """Give a catalog, readings and a worker that works when told to."""
    await seed_catalog(database_url)
    await store_versions(database_url, many_versions(1))
    await store_progress(database_url, END + timedelta(days=1), first_arrival=T0)
    return Exporting(pool, tmp_path / "store", TurnedClock())


@pytest.fixture
async def api(exporting: Exporting, database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    store = exporting.folder.as_uri()
    async with running_api(database_url, tmp_path, rate_burst=10_000, export_store_url=store) as running:
        yield running


async def finished(api: Api, exporting: Exporting, token: str, **more: Any) -> tuple[str, dict[str, Any], str]:
    """Export; return its address, how it is shown, and the path of a link."""
    asked = await api.call("POST", "/v1/exports", token=token, body={**BODY, **more})
    assert asked.status == 201, asked
    await exporting.work()
    shown = (await api.get(asked.headers["Location"], token)).json
    assert shown["state"] == "done", shown
    return asked.headers["Location"], shown, path_of(shown)


def path_of(shown: dict[str, Any]) -> str:
    url = urlsplit(shown["download"]["url"])
    assert (url.scheme, url.netloc) == ("https", "api.example.org")
    return f"{url.path}?{url.query}"


@pytest.mark.parametrize("export_format", list(ExportFormat))
async def test_from_the_request_to_the_file(api: Api, exporting: Exporting, export_format: ExportFormat) -> None:
    token = await api.token(1, "viewer")
    asked = await api.call("POST", "/v1/exports", token=token, body={**BODY, "format": export_format.value})
    assert (asked.status, asked.json["state"], asked.json["progress"]) == (201, "waiting", 0)
    assert (asked.json["file"], asked.json["download"], asked.json["rows_kept_from"]) == (None, None, None)
    await exporting.work()
    got = await api.get(asked.headers["Location"], token)
    shown = got.json
    assert (shown["state"], shown["progress"], got.headers["Cache-Control"]) == ("done", 1, "no-store")
    file = await api.get(path_of(shown))
    assert file.status == 200
    assert len(file.content) == shown["file"]["bytes"]
    assert hashlib.sha256(file.content).hexdigest() == shown["file"]["sha256"]
    assert file.headers["Content-Disposition"] == f'attachment; filename="{shown["file"]["name"]}"'
    if export_format is not ExportFormat.PARQUET:
        rows = expected_export(many_versions(1), wanted_export(T0, END, 5))
        assert file.content == rendered(rows, export_format)
        assert shown["rows"] == len(rows)
    [listed] = (await api.get("/v1/exports?mine=true&state=done,failed", token)).json["exports"]
    assert listed == shown | {"download": None}
    assert (await api.get("/v1/exports?state=failed", token)).json["exports"] == []


async def test_a_range_of_the_file_goes_on_where_a_download_broke(api: Api, exporting: Exporting) -> None:
    token = await api.token(1, "viewer")
    _location, shown, path = await finished(api, exporting, token)
    whole = await api.get(path)
    size = len(whole.content)
    for asked, start, end in (
        ("bytes=100-", 100, size),
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes=10-{size + 5}", 10, size),
        ("bytes=-7", size - 7, size),
    ):
        part = await api.get(path, Range=asked)
        assert (part.status, part.content) == (206, whole.content[start:end]), asked
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    changed = await api.get(path, Range="bytes=100-", If_Range='"another"')
    assert (changed.status, changed.content) == (200, whole.content)
    same = await api.get(path, Range="bytes=100-", If_Range=whole.etag)
    assert same.status == 206
    for ignored in ("bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=-", f"bytes=-{size + 1}"):
        assert (await api.get(path, Range=ignored)).content == whole.content, ignored
    for behind in (f"bytes={size}-", "bytes=-0"):
        refused = await api.get(path, Range=behind)
        assert (refused.status, refused.headers["Content-Range"]) == (416, f"bytes */{size}"), behind
    assert shown["file"]["sha256"] == whole.etag.strip('"')
    many = await asyncio.gather(*(api.get(path) for _ in range(8)))
    assert {one.content for one in many} == {whole.content}


@pytest.mark.parametrize("export_format", list(ExportFormat))
async def test_head_says_what_get_would_answer(api: Api, exporting: Exporting, export_format: ExportFormat) -> None:
    location, shown, path = await finished(api, exporting, await api.token(1, "viewer"), format=export_format.value)
    whole, head = await api.get(path), await api.call("HEAD", path)
    assert (head.status, head.content) == (200, b"")
    told = {name: head.headers.get(name) for name in whole.headers if name.lower() not in {"date", "x-request-id"}}
    assert told == {name: whole.headers[name] for name in told}
    assert (head.headers["Content-Length"], head.etag) == (str(shown["file"]["bytes"]), f'"{shown["file"]["sha256"]}"')
    part = await api.call("HEAD", path, headers={"Range": "bytes=0-9"})
    assert (part.status, part.headers["Content-Length"]) == (200, head.headers["Content-Length"])
    assert (await api.call("HEAD", path[:-1])).status == 403
    assert (await api.call("HEAD", f"{location}/file?organization_id=1")).status == 422
    assert (await api.call("HEAD", location)).status == 405
    allowed = await api.call("PUT", path)
    assert (allowed.status, allowed.headers["Allow"]) == (405, "GET, HEAD")
    file = await exporting.path(shown["export_id"])
    file.write_bytes(whole.content[:-1])
    assert (await api.call("HEAD", path)).status == 410
    file.unlink()
    assert (await api.call("HEAD", path)).status == 410


async def test_a_link_opens_its_file_alone_and_only_in_its_time(api: Api, exporting: Exporting, tmp_path: Path) -> None:
    token = await api.token(1, "viewer")
    location, shown, path = await finished(api, exporting, token)
    export_id = shown["export_id"]
    head, _equals, signed = path.rpartition("=")
    before = (await api.get(f"{location}?link_minutes=2880", token)).json["download"]["expires_at"]
    assert before > shown["download"]["expires_at"]

    async def refused(changed: str) -> tuple[int, str]:
        got = await api.get(changed)
        assert location in got.json["detail"] or got.status != 403, got.json
        return got.status, got.json["code"]

    for other in (signed[:-1], signed[:-3] + "AAA", signed.replace(".", ".9", 1), "x", "k1.1.x", "%00", signed + "A"):
        assert await refused(f"{head}={other}") in {(403, "bad_link"), (422, "invalid_value")}, other
    assert await refused(path.replace("organization_id=1", "organization_id=2")) == (403, "bad_link")
    foreign = await api.get(path.replace(f"/exports/{export_id}/", f"/exports/{export_id + 1}/"))
    assert (foreign.status, foreign.json["code"]) == (403, "bad_link")
    assert (await api.get(f"{location}/file?organization_id=1")).json["field"] == "token"
    signer = Vault(read_keys(tmp_path / "secret-keys")).link_signer(PURPOSE)
    a_minute_ago = SystemClock().now() - timedelta(minutes=1)
    late = f"{head}={signer.sign((1, export_id), a_minute_ago)}"
    assert await refused(late) == (403, "link_expired")
    # Once the file is gone, a new link would not help: 410, whether the link's time is over or the store is faster.
    (await exporting.path(export_id)).unlink()
    assert await refused(path) == (410, "gone")
    exporting.clock.ahead = timedelta(hours=49)  # type: ignore[attr-defined] # the fixture's clock can be turned
    await exporting.sweeper.sweep()
    assert await refused(path) == (410, "gone")
    assert await refused(late) == (410, "gone")
    gone = (await api.get(location, token)).json
    assert (gone["state"], gone["file"], gone["download"]) == ("expired", shown["file"] | {"kept_until": None}, None)


async def test_the_fourth_waits_or_is_refused_and_a_repeated_request_asks_once(api: Api, exporting: Exporting) -> None:
    token, other = await api.token(1, "viewer"), await api.token(1, "viewer")

    async def ask(key: str, **more: Any) -> Got:
        return await api.call(
            "POST", "/v1/exports", token=token, body={**BODY, **more}, headers={"Idempotency-Key": key}
        )

    first = await ask("1")
    again = await ask("1")
    assert (again.json, again.headers["Idempotent-Replay"]) == (first.json, "true")
    assert (await ask("1", format="jsonl")).json["code"] == "idempotency_key_reused"
    assert [(await ask(key)).status for key in ("2", "3")] == [201, 201]
    fourth = await ask("4")
    assert (fourth.status, fourth.json["code"], fourth.json["field"]) == (409, "too_many_exports", "if_full")
    assert "wait" in fourth.json["detail"]
    assert (await api.call("POST", "/v1/exports", token=other, body=BODY)).status == 201
    assert (await ask("5", if_full="wait")).status == 201
    # What was refused was not kept under its key: when there is room, the same request is granted.
    await api.call("POST", f"{first.headers['Location']}/cancel", token=token)
    await exporting.work()
    assert (await ask("4")).status == 201
    limits = (await api.get("/v1/export-limits", token)).json
    assert (limits["at_once"], limits["sites"], limits["days"]) == (3, 250, 366)
    assert [one["resolution_minutes"] for one in limits["resolutions"]] == [1, 5, 15, 60]


async def test_who_may_cancel_and_what_is_on_record(api: Api, exporting: Exporting) -> None:
    token, other = await api.token(1, "viewer", name="mine"), await api.token(1, "viewer")
    exporter, admin = await api.token(1, "viewer", may_export=True), await api.token(1, "admin")
    asked = await api.call("POST", "/v1/exports", token=token, body=BODY)
    cancel = f"{asked.headers['Location']}/cancel"
    refused = await api.call("POST", cancel, token=other)
    assert (refused.status, refused.json["code"]) == (403, "insufficient_scope")
    assert (await api.call("POST", cancel, token=token)).json["state"] == "cancelled"
    assert (await api.call("POST", cancel, token=exporter)).json["state"] == "cancelled"
    await exporting.work()
    assert (await api.get(asked.headers["Location"], token)).json["download"] is None
    location, _shown, _path = await finished(api, exporting, token)
    late = await api.call("POST", f"{location}/cancel", token=admin)
    assert (late.status, late.json["code"]) == (409, "conflict")
    entries = [one for one in (await api.get("/v1/audit", admin)).json["entries"] if "export." in one["action"]]
    assert [(one["action"], one["actor_name"]) for one in entries] == [
        ("export.create", "mine"), ("export.cancel", "mine"), ("export.create", "mine"),
    ]  # fmt: skip
    assert entries[1]["after"]["state"] == "cancelled"


async def test_whoever_is_held_to_sites_exports_and_sees_these_alone(api: Api, exporting: Exporting) -> None:
    everyone, held = await api.token(1, "viewer"), await api.token(1, "viewer", site_ids=[2])
    whole, _shown, _path = await finished(api, exporting, everyone)
    assert (await api.get(whole, held)).status == 404
    assert (await api.call("POST", f"{whole}/cancel", token=held)).status == 404
    own = await api.call("POST", "/v1/exports", token=held, body=BODY)
    assert own.json["site_ids"] == [2]
    for field, value in (("site_ids", [1, 2]), ("meter_ids", [1])):
        refused = await api.call("POST", "/v1/exports", token=held, body={**BODY, field: value})
        assert (refused.status, refused.json["field"]) == (422, field)
    assert [one["export_id"] for one in (await api.get("/v1/exports", held)).json["exports"]] == [own.json["export_id"]]
    assert len((await api.get("/v1/exports", everyone)).json["exports"]) == 2


@pytest.mark.parametrize(
    ("wrong", "field", "says"),
    [
        ({"until": "2026-11-20T13:02:00Z"}, "until", "take 2026-11-20T13:00:00Z or 2026-11-20T13:05:00Z"),
        ({"until": "2026-11-20T09:00:00Z"}, "until", "the end must be after the start"),
        ({"until": "2028-11-20T10:00:00Z"}, "until", "split it into several exports"),
        ({"from": "9999-12-31T23:00:00Z"}, "from", "the year 9999"),
        ({"from": "2026-11-20T10:00:00"}, "from", "timezone"),
        ({"resolution_minutes": 30}, "resolution_minutes", "30"),
        ({"site_ids": [99]}, "site_ids", "there is no site 99 here"),
        ({"meter_ids": []}, "meter_ids", "length"),
        ({"meter_ids": [1, 1]}, "meter_ids", "name each once"),
        ({"as_of": "2030-01-01T00:00:00Z"}, "as_of", "ask for an instant before"),
        ({"format": "xlsx"}, "format", "xlsx"),
        ({"if_full": "queue"}, "if_full", "queue"),
        ({"to": "2026-11-20T13:00:00Z"}, "to", "until"),
    ],
)
async def test_a_request_that_cannot_be_granted_says_why(
    api: Api, wrong: dict[str, Any], field: str, says: str
) -> None:
    got = await api.call("POST", "/v1/exports", token=await api.token(1, "viewer"), body={**BODY, **wrong})
    assert (got.status, got.json["field"]) == (422, field), got.json
    assert says in got.json["detail"]


async def test_pages_lose_and_double_nothing_while_exports_are_added(api: Api, exporting: Exporting) -> None:
    token = await api.token(1, "viewer")
    made = [(await exporting.ask(wanted_export(T0, END, 60), user=f"u{n}")).export_id for n in range(7)]
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        got = (await api.get(f"/v1/exports?limit=2{f'&cursor={cursor}' if cursor else ''}", token)).json
        seen += [one["export_id"] for one in got["exports"]]
        cursor = got["next_cursor"]
        await exporting.ask(wanted_export(T0, END, 60), user="late")
        await exporting.work()
    assert seen == sorted(made, reverse=True)


async def test_a_store_that_cannot_be_opened_is_the_operators_matter(
    exporting: Exporting, database_url: str, tmp_path: Path
) -> None:
    async with running_api(database_url, tmp_path, export_store_url="gopher://store.internal/x") as api:
        _location, _shown, path = await finished(api, exporting, await api.token(1, "viewer"))
        got = await api.get(path)
    assert (got.status, got.json["code"]) == (500, "internal_error")
    assert b"store.internal" not in got.content
