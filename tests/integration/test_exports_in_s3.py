"""Manual exports whose files lie in S3: made by the worker's own process, handed out by the API, removed in time."""

import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import pytest

from services.core.manual_export import ExportFormat
from services.local.processes import ChildProcess
from services.platform.postgres import Pool
from tests.support.api import Api, running_api
from tests.support.closing import T0, many_versions, store_progress, store_versions
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, seed_catalog, wanted_export
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.s3_server import BUCKET, S3Server, running_s3

END = T0 + timedelta(hours=3)
URL = f"s3://{BUCKET}/meterpost/exports"
BODY: dict[str, Any] = {"from": "2026-11-20T10:00:00Z", "until": "2026-11-20T13:00:00Z", "resolution_minutes": 5}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """Give a server, and what reaches it in the environment."""
    with running_s3(tmp_path / "s3") as server:
        yield server


@pytest.fixture
async def exporting(pool: Pool, database_url: str, tmp_path: Path) -> Exporting:
    """Give a catalog and readings."""
    await seed_catalog(database_url)
    await store_versions(database_url, many_versions(1))
    await store_progress(database_url, END + timedelta(days=1), first_arrival=T0)
    return Exporting(pool, tmp_path / "unused", TurnedClock())


@pytest.fixture
async def api(s3: S3Server, exporting: Exporting, database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    """Give the API, with its files where the worker puts them."""
    async with running_api(database_url, tmp_path, export_store_url=URL) as made:
        yield made


@pytest.fixture
def worker(s3: S3Server, api: Api, database_url: str, tmp_path: Path) -> Iterator[ChildProcess]:
    """Give the worker, as a process of its own."""
    environment = {
        **s3.environment,
        "METERPOST_EXPORT_STORE_URL": URL,
        "METERPOST_EXPORT_LOOK_SECONDS": "0.1",
        "METERPOST_EXPORT_SWEEP_SECONDS": "0.2",
        "METERPOST_EXPORT_REST_SHARE": "0",
        "METERPOST_EXPORT_NICE": "0",
    }
    with running(Platform("127.0.0.1:9", database_url, "", tmp_path)) as processes:
        yield processes.start("services.exports", environment=environment)


async def ask(api: Api, token: str, **more: Any) -> str:
    """Ask for an export; return its address."""
    asked = await api.call("POST", "/v1/exports", token=token, body={**BODY, **more})
    assert asked.status == 201, asked
    return str(asked.headers["Location"])


async def done(api: Api, token: str, location: str) -> dict[str, Any]:
    """Wait until an export is done; return how it is shown."""

    async def is_done() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await api.get(location, token)).json
        return shown if shown["state"] == "done" else None

    found: dict[str, Any] | None = await eventually_async(is_done, 40, because="the export is done")
    assert found is not None
    return found


def path_of(shown: dict[str, Any]) -> str:
    return str(shown["download"]["url"]).removeprefix("https://api.example.org")


@contextmanager
def silent_server(port: int) -> Iterator[None]:
    """Take connections on a port, and never say a word."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
        yield


@pytest.mark.parametrize("export_format", ["csv", "parquet"])
async def test_from_the_request_to_the_file_to_its_removal(
    s3: S3Server, exporting: Exporting, api: Api, worker: ChildProcess, export_format: str
) -> None:
    token = await api.token(1, "viewer")
    location = await ask(api, token, format=export_format)
    shown = await done(api, token, location)
    file = await api.get(path_of(shown))
    assert (file.status, len(file.content)) == (200, shown["file"]["bytes"])
    assert hashlib.sha256(file.content).hexdigest() == shown["file"]["sha256"]
    if export_format == "csv":
        expected = expected_export(many_versions(1), wanted_export(T0, END, 5))
        assert file.content == rendered(expected, ExportFormat.CSV)
    part = await api.get(path_of(shown), Range="bytes=100-199")
    assert (part.status, part.content) == (206, file.content[100:200])
    name = f"meterpost/exports/1/{shown['export_id']}/file/1/{shown['file']['name']}"

    async def file_alone() -> bool:
        return s3.names() == [name]

    await eventually_async(file_alone, 20, because="the chunks are removed")
    await exporting.pool.execute("UPDATE manual_export_progress SET expires_at = now()")

    async def nothing() -> bool:
        return s3.names() == []

    await eventually_async(nothing, 20, because="the file is removed after its time")
    gone = await api.get(path_of(shown))
    assert (gone.status, gone.json["code"]) == (410, "gone")
    assert list(s3.uploads.iterdir()) == []


async def test_a_store_that_is_away_is_waited_for(
    s3: S3Server, exporting: Exporting, api: Api, worker: ChildProcess
) -> None:
    s3.stop()
    token = await api.token(1, "viewer")
    location = await ask(api, token)
    number = int(location.rpartition("/")[2])

    async def says_why() -> str | None:
        return (await exporting.find(number)).problem_code

    assert await eventually_async(says_why, 40, because="the export says why it waits") == "server_away"
    assert worker.is_running
    s3.start()
    shown = await done(api, token, location)
    whole = await api.get(path_of(shown))
    assert hashlib.sha256(whole.content).hexdigest() == shown["file"]["sha256"]


async def test_a_bucket_that_is_not_there_is_waited_for_and_files_in_it_are_not_gone(
    s3: S3Server, exporting: Exporting, api: Api, worker: ChildProcess
) -> None:
    s3.buckets.clear()
    token = await api.token(1, "viewer")
    location = await ask(api, token)
    number = int(location.rpartition("/")[2])

    async def problem() -> str | None:
        return (await exporting.find(number)).problem

    assert "NoSuchBucket" in (await eventually_async(problem, 40, because="the export says why it waits") or "")
    assert (await exporting.find(number)).problem_code == "server_away"
    s3.buckets.add(BUCKET)
    path = path_of(await done(api, token, location))
    s3.buckets.clear()
    for method in ("GET", "HEAD"):
        away = await api.call(method, path)
        assert (away.status, away.headers["Retry-After"]) == (503, "5"), method
    s3.buckets.add(BUCKET)
    for name in s3.names():
        (s3.objects / quote(name, safe="")).unlink()
    for method in ("GET", "HEAD"):
        assert (await api.call(method, path)).status == 410, method


@pytest.mark.alone
async def test_a_download_is_told_in_seconds_that_the_store_is_away(
    s3: S3Server, api: Api, worker: ChildProcess
) -> None:
    token = await api.token(1, "viewer")
    shown = await done(api, token, await ask(api, token))
    whole = await api.get(path_of(shown))
    s3.stop()

    async def refused() -> None:
        began = monotonic()
        away = await api.get(path_of(shown))
        assert (away.status, away.json["code"], away.headers["Retry-After"]) == (503, "unavailable", "5"), away.content
        assert "the store of exported files does not answer" in away.json["detail"]
        assert monotonic() - began < 10

    await refused()
    with silent_server(s3.port):
        await refused()
    s3.start()
    again = await api.get(path_of(shown))
    assert (again.status, again.content) == (200, whole.content)
