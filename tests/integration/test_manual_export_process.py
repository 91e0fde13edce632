"""The exports' worker as a process of its own, and the command: kill -9 at every place, waiting, links, paths."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from services.api.export_downloads import NotDownloadableError, download_of, open_link, sign_link, stream
from services.core.manual_export import ExportFormat
from services.local.processes import ChildProcess
from services.platform.errors import UserError
from services.platform.objects import ObjectMissingError, open_store
from services.platform.postgres import Pool
from services.platform.secrets import Vault
from services.platform.signed_links import LinkError, LinkExpiredError
from tests.support.closing import T0, many_versions, store_progress, store_versions
from tests.support.command import Meterpost
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, seed_catalog, wanted_export
from tests.support.platform import Platform, running
from tests.support.polling import eventually, eventually_async

END = T0 + timedelta(hours=3)
VAULT = Vault({"new": b"n" * 32, "old": b"o" * 32})


@pytest.fixture
async def exporting(pool: Pool, database_url: str, tmp_path: Path) -> Exporting:
    """Give a catalog and readings."""
    await seed_catalog(database_url)
    await store_versions(database_url, many_versions(1))
    await store_progress(database_url, END + timedelta(days=1), first_arrival=T0)
    return Exporting(pool, tmp_path / "store", TurnedClock())


@pytest.fixture
def processes(database_url: str, tmp_path: Path) -> Iterator[Platform]:
    """Give what starts processes; there is no broker."""
    with running(Platform("127.0.0.1:9", database_url, "", tmp_path)) as made:
        yield made


@pytest.fixture
def meterpost(processes: Platform, tmp_path: Path) -> Meterpost:
    """Give the command, as its user has it."""
    environment = {
        "METERPOST_DATABASE_URL": processes.database_url,
        "METERPOST_EXPORT_STORE_URL": (tmp_path / "store").as_uri(),
        "METERPOST_SECRET_KEYS": f"test:{'A' * 43}=",
    }
    return Meterpost(tmp_path, environment)


def start(processes: Platform, **environment: str) -> ChildProcess:
    quick = {
        "METERPOST_EXPORT_STORE_URL": (processes.folder / "store").as_uri(),
        "METERPOST_EXPORT_LOOK_SECONDS": "0.1",
        "METERPOST_EXPORT_SWEEP_SECONDS": "0.2",
        "METERPOST_EXPORT_LEASE_SECONDS": "1",
        "METERPOST_EXPORT_REST_SHARE": "0",
        "METERPOST_EXPORT_NICE": "0",
    }
    return processes.start("services.exports", environment={**quick, **environment})


@pytest.mark.parametrize(
    ("export_format", "place"),
    [
        (ExportFormat.CSV, "exports.before_commit:3"),
        (ExportFormat.CSV, "exports.after_commit:3"),
        (ExportFormat.JSON_LINES, "exports.before_file"),
        (ExportFormat.PARQUET, "exports.after_commit:2"),
    ],
)
async def test_killed_and_gone_on_it_gives_the_same_bytes(
    exporting: Exporting, processes: Platform, export_format: ExportFormat, place: str
) -> None:
    wanted = wanted_export(T0, END, 5, format=export_format)
    undisturbed = await exporting.file(wanted, chunk_minutes=20)
    export = await exporting.ask(wanted)
    await exporting.begin_with(export, 20)
    # One chunk a transaction, of which so many end well.
    doomed = start(processes, METERPOST_CRASH_AT=place, METERPOST_EXPORT_STEP_SECONDS="0")
    eventually(lambda: not doomed.is_running, 30, because="the worker is killed")
    before = await exporting.find(export.export_id)
    assert before.state == "running"
    start(processes)
    await exporting.until(export.export_id, "done")
    content = await exporting.content(export.export_id)
    assert content == undisturbed

    async def swept() -> bool:
        rows = await processes.fetch("SELECT 1 FROM manual_export_chunk WHERE export_id = $1", export.export_id)
        folder = exporting.folder / "1" / str(export.export_id)
        return not rows and [one for one in folder.rglob("*") if one.is_file()] == [
            await exporting.path(export.export_id)
        ]

    await eventually_async(swept, 20, because="the chunks are removed")
    if place == "exports.after_commit:3":
        # It went on from the last complete chunk: of the chunks, three were there before.
        assert before.position == T0 + timedelta(minutes=60)


async def test_a_walk_with_the_command(exporting: Exporting, processes: Platform, meterpost: Meterpost) -> None:
    start(processes)
    created = meterpost.json(
        *("exports", "create", "--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T13:00:00Z"),
        *("--resolution", "5", "--format", "jsonl", "--site", "1", "--meter", "1", "--meter", "3", "--wait"),
    )
    wanted = wanted_export(T0, END, 5, format=ExportFormat.JSON_LINES, site_ids=[1], meter_ids=[1, 3])
    content = rendered(expected_export(many_versions(1), wanted), ExportFormat.JSON_LINES)
    assert (created["state"], created["progress"]) == ("done", 1)
    assert created["sha256"] == hashlib.sha256(content).hexdigest()
    number = str(created["export"])
    told = json.loads(meterpost.ok("exports", "download", number, "--output", "got.jsonl", "--json"))
    assert told["sha256"] == created["sha256"]
    assert (meterpost.folder / "got.jsonl").read_bytes() == content
    assert "exists: choose another name" in meterpost.refused("exports", "download", number, "-o", "got.jsonl")
    shown = meterpost.json("exports", "show", number, "--link", "15m")
    assert shown["link"]["token"].startswith("test.")
    assert number in meterpost.ok("exports", "list")
    assert created["sha256"] in meterpost.ok("exports", "show", number)
    assert "nothing to cancel" in meterpost.refused("exports", "cancel", number)
    said = meterpost("exports", "create", "--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T11:00:00Z", "--wait")
    assert said.code == 0
    assert "was asked for" in said.err
    assert "the newest" in said.out
    for arguments, sentence in (
        (["--to", "2026-11-20T11:00:00Z"], "--from and --to say which windows are meant: give both"),
        (["--from", "yesterday", "--to", "2026-11-20T11:00:00Z"], "'yesterday' is not an ISO 8601 time"),
        (
            ["--from", "2026-11-20T10:02:00Z", "--to", "2026-11-20T11:00:00Z"],
            "no window of 15 minutes starts at 2026-11-20T10:02:00Z: take 2026-11-20T10:00:00Z or 2026-11-20T10:15:00Z",
        ),
        (["--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T11:00:00Z", "--site", "Nowhere"], "no site 'Nowhere'"),
    ):
        assert sentence in meterpost.refused("exports", "create", *arguments)
    assert "there is no export 4711" in meterpost.refused("exports", "show", "4711")


async def test_a_store_that_is_away_is_waited_for(exporting: Exporting, processes: Platform) -> None:
    """The folder cannot be written to; when it can, the export goes on by itself."""
    store = processes.folder / "store"
    store.mkdir(exist_ok=True)
    # A file stands where the organization's folder has to be.
    (store / "1").write_text("in the way")
    export = await exporting.ask(wanted_export(T0, END, 5))
    start(processes)

    async def waits() -> bool:
        return (await exporting.find(export.export_id)).problem_code is not None

    await eventually_async(waits, 20, because="it says why it waits")
    (store / "1").unlink()
    done = await exporting.until(export.export_id, "done")
    assert done.problem is None


async def test_links_open_one_file_for_a_while(exporting: Exporting) -> None:
    exported = await exporting.ask(wanted_export(T0, END, 5))
    now = exporting.clock.now()
    with pytest.raises(NotDownloadableError, match="waits for its turn: come back when it is done"):
        sign_link(VAULT, 1, exported, now)
    await exporting.work()
    export = await exporting.find(exported.export_id)
    content = await exporting.content(export.export_id)
    link = sign_link(VAULT, 1, export, now, timedelta(minutes=5))
    assert now < link.expires_at <= now + timedelta(minutes=5)
    found = await open_link(exporting.pool, VAULT, 1, export.export_id, link.token, now)
    assert (found.byte_count, found.sha256) == (len(content), hashlib.sha256(content).digest())
    assert b"".join([piece async for piece in stream(exporting.objects, found)]) == content
    assert b"".join([piece async for piece in stream(exporting.objects, found, 100, 200)]) == content[100:200]
    # The keys are exchanged: the old link goes on to open.
    rotated = Vault({"newest": b"x" * 32, "new": b"n" * 32})
    await open_link(exporting.pool, rotated, 1, export.export_id, link.token, now)
    key_id, expires, signature = link.token.split(".")
    for organization, number, token in (
        (2, export.export_id, link.token),
        (1, export.export_id + 1, link.token),
        (1, export.export_id, f"old.{expires}.{signature}"),
        (1, export.export_id, f"{key_id}.{int(expires) + 1}.{signature}"),
        (1, export.export_id, f"{key_id}.{expires}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"),
        (1, export.export_id, f"unknown.{expires}.{signature}"),
        (1, export.export_id, "../../etc/passwd"),
        (1, export.export_id, ""),
    ):
        with pytest.raises(LinkError, match="opens nothing: ask for a new one"):
            await open_link(exporting.pool, VAULT, organization, number, token, now)
    with pytest.raises(LinkError, match="opens nothing"):
        await open_link(exporting.pool, Vault({}), 1, export.export_id, link.token, now)
    with pytest.raises(LinkExpiredError):
        await open_link(exporting.pool, VAULT, 1, export.export_id, link.token, link.expires_at)
    with pytest.raises(UserError, match="at most 48 hours"):
        sign_link(VAULT, 1, export, now, timedelta(hours=49))
    with pytest.raises(UserError, match="METERPOST_SECRET_KEYS"):
        sign_link(Vault({}), 1, export, now)
    # Never longer than the file is kept.
    late = now + timedelta(hours=47, minutes=59)
    assert export.expires_at is not None
    assert sign_link(VAULT, 1, export, late).expires_at <= export.expires_at
    with pytest.raises(NotDownloadableError, match="no longer kept"):
        download_of(export, export.expires_at)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "1/../../secret",
        "/etc/passwd",
        "1//2",
        "",
        ".",
        "..",
        "a/.hidden",
        "a\\b",
        "a\0b",
        "1/2\n",
        "x" * 501,
    ],
)
def test_no_name_leads_out_of_the_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    store = open_store((tmp_path / "store").as_uri())
    for attempt in (
        lambda: store.put(name, b"x"),
        lambda: store.writer(name),
        lambda: list(store.read(name)),
        lambda: store.remove_all(name),
    ):
        with pytest.raises(ValueError, match="is no name of an object"):
            attempt()
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["secret", "store"]


def test_a_file_that_is_not_finished_does_not_appear(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    with suppress(RuntimeError), store.writer("1/file") as writer:
        writer.write(b"x" * (20 << 20))
        raise RuntimeError
    with pytest.raises(ObjectMissingError):
        store.size("1/file")
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


@pytest.mark.parametrize("url", ["ftp://host/x", "exports", "file://host/folder", "s3:", "http://127.0.0.1/x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="cannot be"):
        open_store(url)
