"""The demo's receiver and its certificates, as `make run` uses them."""

import asyncio
import hashlib
import json
import ssl
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.local.certificates import ensure_certificates
from services.local.https_receiver import Receiver, serve
from services.platform.clock import SystemClock
from tests.support.exports import Exports, at, delivering
from tests.support.polling import eventually_async

BODY = b'{"measurements":[{"METER_ID":1},{"METER_ID":2}]}'
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)

Client: TypeAlias = TestClient[web.Request, web.Application]


@asynccontextmanager
async def receiving(folder: Path) -> AsyncIterator[Client]:
    async with TestClient(TestServer(Receiver(folder, SystemClock()).application())) as client:
        yield client


def headers(body: bytes = BODY, **changed: str) -> Mapping[str, str]:
    return {
        "webhook-id": "a1b2c3d4-job7-20261120T100000Z-part1",
        "Meterpost-Job": "7",
        "Meterpost-Filename": "7-all_1of1.json",
        "Meterpost-Rows": "2",
        "Meterpost-Content-SHA256": hashlib.sha256(body).hexdigest(),
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }


async def post(client: Client, body: bytes = BODY, **changed: str) -> int:
    async with client.post("/any/path", data=body, headers=headers(body, **changed)) as response:
        return response.status


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*"))


def requests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


async def test_a_part_is_stored_once_and_other_bytes_under_its_id_are_refused(tmp_path: Path) -> None:
    other = BODY.replace(b"1", b"3")
    async with receiving(tmp_path) as client:
        assert [await post(client), await post(client), await post(client, other)] == [200, 200, 409]
    async with receiving(tmp_path) as client:
        assert [await post(client), await post(client, other)] == [200, 409]
    assert files(tmp_path) == ["7", "7-all_1of1.json", "requests.jsonl"]
    assert (tmp_path / "7" / "7-all_1of1.json").read_bytes() == BODY
    assert [(line["status"], line["rows"], line["bytes"]) for line in requests(tmp_path)] == [
        (200, "2", len(BODY)), (200, "2", len(BODY)), (409, "2", len(other)), (200, "2", len(BODY)),
        (409, "2", len(other)),
    ]  # fmt: skip


async def test_a_part_stored_just_before_an_end_is_known_although_nothing_was_noted(tmp_path: Path) -> None:
    async with receiving(tmp_path) as client:
        await post(client)
    with (tmp_path / "requests.jsonl").open("w") as stream:
        stream.write('{"time": "2026-11-2')
    async with receiving(tmp_path) as client:
        assert await post(client, BODY + b" ") == 409
        assert await post(client) == 200


@pytest.mark.parametrize(
    "changed",
    [
        {"Meterpost_Content_SHA256": "00"},
        {"Meterpost_Rows": "3"},
        {"Meterpost_Filename": "../outside.json"},
        {"Meterpost_Filename": ".hidden"},
        {"Meterpost_Job": "../7"},
        {"webhook_id": ""},
    ],
)
async def test_a_request_that_is_not_what_it_says_is_refused(tmp_path: Path, changed: dict[str, str]) -> None:
    async with receiving(tmp_path) as client:
        assert await post(client, BODY, **changed) == 400
    assert files(tmp_path) == ["requests.jsonl"]


async def test_bodies_of_one_megabyte_are_taken(tmp_path: Path) -> None:
    body = b'{"measurements":["' + b"x" * 1_020_000 + b'"]}'
    async with receiving(tmp_path) as client:
        assert await post(client, body, Meterpost_Rows="1") == 200


def test_certificates_are_kept_and_the_servers_is_renewed_under_the_same_authority(tmp_path: Path) -> None:
    first = ensure_certificates(tmp_path, NOW)
    authority, server = first.authority.read_bytes(), first.server.read_bytes()
    assert stat.S_IMODE(first.server_key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o600
    ensure_certificates(tmp_path, NOW + timedelta(days=300))
    assert (first.authority.read_bytes(), first.server.read_bytes()) == (authority, server)
    ensure_certificates(tmp_path, NOW + timedelta(days=340))
    assert first.authority.read_bytes() == authority
    assert first.server.read_bytes() != server
    ensure_certificates(tmp_path, NOW + timedelta(days=3640))
    assert first.authority.read_bytes() != authority


def test_damaged_certificates_are_made_anew(tmp_path: Path) -> None:
    first = ensure_certificates(tmp_path, NOW)
    authority = first.authority.read_bytes()
    first.server_key.write_text("nonsense")
    again = ensure_certificates(tmp_path, NOW)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(again.server, again.server_key)
    assert again.authority.read_bytes() == authority


async def test_delivery_to_the_demo_receiver(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through TLS, verified against the demo's own authority, to files on disk."""
    made = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(made.server, made.server_key)
    exports, stopping = Exports(database_url), asyncio.Event()
    task = asyncio.create_task(serve(tmp_path / "received", 0, tls, stopping))
    url = (await eventually_async(lambda: capsys.readouterr().out)).strip()
    await exports.seed(meters=2_001)
    await exports.close_windows(60, at(8), at(9))
    ca_pem = made.authority.read_text()
    job_id = await exports.add_job({"url": url + "/https", "ca_pem": ca_pem}, resolution=60)
    async with delivering(database_url):

        async def delivered() -> bool:
            return await exports.states(job_id) == ["delivered"]

        await eventually_async(delivered)
    stopping.set()
    await task
    stored = sorted((tmp_path / "received" / str(job_id)).iterdir())
    assert [file.name[-10:] for file in stored] == ["_1of2.json", "_2of2.json"]
    assert [len(json.loads(file.read_bytes())["measurements"]) for file in stored] == [2_000, 1]
    assert [line["status"] for line in requests(tmp_path / "received")] == [200, 200]
