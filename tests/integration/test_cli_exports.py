"""`meterpost --url … exports`: as on the database, and downloads that break and go on."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from services.core.manual_export import ExportFormat
from services.platform.postgres import Pool
from tests.support.api import Api, running_api
from tests.support.closing import T0, many_versions, store_progress, store_versions
from tests.support.command import Meterpost, Outcome
from tests.support.fault_proxy import FaultProxy
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, seed_catalog, wanted_export
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async

END = T0 + timedelta(hours=3)
RANGE = ("--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T13:00:00Z")


@pytest.fixture
async def exporting(pool: Pool, database_url: str, tmp_path: Path) -> Exporting:
    """Give a catalog and readings."""
    await seed_catalog(database_url)
    await store_versions(database_url, many_versions(1))
    await store_progress(database_url, END + timedelta(days=1), first_arrival=T0)
    return Exporting(pool, tmp_path / "store", TurnedClock())


@pytest.fixture
def worker(exporting: Exporting, database_url: str, tmp_path: Path) -> Iterator[None]:
    """Work exports off beside the test."""
    environment = {"METERPOST_EXPORT_STORE_URL": exporting.folder.as_uri(), "METERPOST_EXPORT_LOOK_SECONDS": "0.1"}
    with running(Platform("127.0.0.1:9", database_url, "", tmp_path)) as processes:
        processes.start("services.exports", environment=environment)
        yield


@pytest.fixture
async def api(exporting: Exporting, database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    store = exporting.folder.as_uri()
    async with running_api(database_url, tmp_path, rate_burst=10_000, export_store_url=store) as made:
        client_id, secret = await made.client(1, "viewer")
        (tmp_path / "client.json").write_text(json.dumps({"client_id": client_id, "client_secret": secret}))
        yield made


def remote(folder: Path, url: str) -> Meterpost:
    """Return a command that knows the API and a client, and no database."""
    return Meterpost(folder, {"METERPOST_API_URL": url, "METERPOST_API_CREDENTIALS_FILE": "client.json"})


async def run(meterpost: Meterpost, *arguments: str, code: int = 0) -> Outcome:
    outcome = await asyncio.to_thread(meterpost, *arguments)
    assert outcome.code == code, (outcome.out, outcome.err)
    return outcome


@asynccontextmanager
async def proxied(api: Api) -> AsyncIterator[FaultProxy]:
    """Lend a proxy before the API."""
    async with FaultProxy("127.0.0.1", int(api.url.rpartition(":")[2])).running() as proxy:
        yield proxy


@pytest.mark.usefixtures("worker")
async def test_a_walk_over_the_api(api: Api, tmp_path: Path) -> None:
    meterpost = remote(tmp_path, api.url)
    more = ("--resolution", "5", "--format", "jsonl", "--site", "1", "--meter", "1", "--meter", "3", "--wait")
    created = (await run(meterpost, "exports", "create", *RANGE, *more, "--json")).json
    wanted = wanted_export(T0, END, 5, format=ExportFormat.JSON_LINES, site_ids=[1], meter_ids=[1, 3])
    content = rendered(expected_export(many_versions(1), wanted), ExportFormat.JSON_LINES)
    assert (created["state"], created["sha256"]) == ("done", hashlib.sha256(content).hexdigest())
    number = str(created["export"])
    told = (await run(meterpost, "exports", "download", number, "-o", "got.jsonl", "--json")).json
    assert told == {"file": "got.jsonl", "bytes": len(content), "sha256": created["sha256"]}
    assert (tmp_path / "got.jsonl").read_bytes() == content
    assert "exists" in (await run(meterpost, "exports", "download", number, "-o", "got.jsonl", code=2)).err
    local = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": api.database_url})
    for command in (("exports", "list"), ("exports", "show", number), ("exports", "list", "--state", "failed")):
        assert (await run(meterpost, *command)).out == (await run(local, *command)).out
        assert (await run(meterpost, *command, "--json")).json == (await run(local, *command, "--json")).json
    link = (await run(meterpost, "exports", "show", number, "--link", "2h", "--json")).json["link"]
    assert link["url"].startswith(f"https://api.example.org/v1/exports/{number}/file?organization_id=1&token=")
    assert "nothing to cancel" in (await run(meterpost, "exports", "cancel", number, code=2)).err
    said = await run(meterpost, "exports", "create", *RANGE, "--wait")
    assert "was asked for" in said.err
    assert "SHA-256" in said.out
    for wrong, sentence in (
        (RANGE[:2], "give both"),
        ((*RANGE[:3], "2026-11-20T13:02:00Z"), "take 2026-11-20T13:00:00Z or 2026-11-20T13:15:00Z"),
        ((*RANGE, "--site", "Nowhere"), "there is no site 'Nowhere'"),
    ):
        assert sentence in (await run(meterpost, "exports", "create", *wrong, code=2)).err
    assert "there is no export 4711" in (await run(meterpost, "exports", "show", "4711", code=2)).err


async def test_without_a_worker_it_waits_and_can_be_cancelled(api: Api, tmp_path: Path) -> None:
    meterpost = remote(tmp_path, api.url)
    for _ in range(3):
        await run(meterpost, "exports", "create", *RANGE)
    assert "wait its turn" in (await run(meterpost, "exports", "create", *RANGE, code=2)).err
    assert (await run(meterpost, "exports", "create", *RANGE, "--queue", "--json")).json["state"] == "waiting"
    assert "show 1 --wait" in (await run(meterpost, "exports", "download", "1", code=2)).err
    assert "is cancelled" in (await run(meterpost, "exports", "cancel", "1")).out
    assert "export 1 is cancelled" in (await run(meterpost, "exports", "download", "1", code=1)).err
    assert "export 1 is cancelled" in (await run(meterpost, "exports", "show", "1", "--wait", code=1)).err


async def test_a_download_that_breaks_goes_on_and_is_checked(api: Api, exporting: Exporting, tmp_path: Path) -> None:
    export = await exporting.ask(wanted_export(T0, END, 1))
    await exporting.work()
    content = await exporting.content(export.export_id)
    assert len(content) > 50_000
    async with proxied(api) as proxy:
        meterpost = remote(tmp_path, f"http://127.0.0.1:{proxy.port}")
        command = ("exports", "download", str(export.export_id), "--overwrite", "-o", "got.csv")
        # Each connection ends after 20 kB, so the file comes over several.
        proxy.faults.cut_answers_at_byte = 20_000
        await run(meterpost, *command)
        assert (tmp_path / "got.csv").read_bytes() == content
        # What an earlier command left is gone on with; it never becomes part of a file that it does not belong to.
        partial = tmp_path / f"got.csv.{hashlib.sha256(content).hexdigest()[:12]}.partial"
        proxy.faults.cut_answers_at_byte = None
        partial.write_bytes(content[:1_000])
        assert "going on after 1,000 of" in (await run(meterpost, *command)).err
        assert (tmp_path / "got.csv").read_bytes() == content
        partial.write_bytes(b"x" + content[1:1_000])
        wrong = await run(meterpost, *command, code=1)
        assert "is not what was put there" in wrong.err
        assert not partial.exists()
        partial.write_bytes(content + b"more")
        await run(meterpost, *command)
        assert (tmp_path / "got.csv").read_bytes() == content
        # Where nothing comes any more it gives up, and leaves what came.
        partial.write_bytes(content[:1_000])
        proxy.faults.bytes_per_s = 10_000
        giving_up = asyncio.create_task(run(meterpost, *command, code=1))
        await eventually_async(more_than(partial, 1_000), 30, because="some of the rest comes")
        proxy.faults.cut_answers_at_byte = 0
        await proxy.end_connections()
        assert "the same command goes on with the rest" in (await giving_up).err
        assert partial.read_bytes() == content[: partial.stat().st_size]


def more_than(file: Path, size: int) -> Callable[[], Awaitable[bool]]:
    async def is_more() -> bool:
        return size_of(file) > size

    return is_more


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
