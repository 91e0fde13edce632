"""What `make run` starts: the first delivery, a second start, crashes, a second instance, and refusals."""

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import asyncpg
import pytest

from services.local.identity import noted_process
from tests.support.command import Meterpost, Outcome
from tests.support.demo import Demo, demo_environment, demo_in, run_to_its_end, still_alive
from tests.support.polling import eventually

STARTED = (
    "receiver-https",
    "receiver-sftp",
    "receiver-ftps",
    "ingest",
    "windowing",
    "delivery-https",
    "delivery-sftp",
    "delivery-ftps",
    "exports",
    "fleet",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Give the instance that these tests share; each starts it unless it runs."""
    with demo_in(tmp_path_factory.mktemp("demo") / "data") as made:
        yield made


def catalogs(folder: Path) -> list[Path]:
    return list(folder.rglob("*_catalog_*_1of1.json"))


def csv_files(folder: Path) -> list[Path]:
    return list(folder.glob("[0-9]*.csv"))


def manifests(folder: Path) -> list[Path]:
    return list(folder.rglob("*_manifest.json"))


def test_the_first_delivery_arrives_within_a_minute_and_the_lines_tell_everything(demo: Demo) -> None:
    demo.ensure_up()
    up_at = time.monotonic()
    eventually(demo.received, 60 - (time.monotonic() - up_at), because="the first part arrives")
    endpoints = demo.endpoints()
    https = endpoints["receivers"]["https"]
    assert endpoints["supervisor_pid"] == demo.pid
    assert endpoints["kafka"].startswith("127.0.0.1:")
    assert endpoints["database"].startswith("postgresql://")
    assert https["url"].startswith("https://localhost:")
    assert "BEGIN CERTIFICATE" in Path(https["ca_file"]).read_text()
    assert Path(https["folder"]) == demo.folder / "received" / "https"
    assert stat.S_IMODE((demo.folder / "endpoints.json").stat().st_mode) == 0o600
    addresses = (endpoints["kafka"], https["url"], https["folder"], "endpoints.json")
    eventually(lambda: all(demo.said(address) for address in addresses), because="lines name every address")
    for name in ("sftp", "ftps"):
        there = endpoints["receivers"][name]
        assert (there["user"], "secrets" in there) == ("demo", False)
        eventually(partial(csv_files, Path(there["folder"])), 30, because="files arrive")
    hosted = endpoints["hosted_folder"]
    eventually(partial(csv_files, Path(hosted["folder"])), 30, because="a customer fetches from the hosted folder")
    eventually(partial(catalogs, Path(https["folder"])), 30, because="the catalog arrives without waiting for midnight")
    words = ("readings stored: ", "lag ", "windows closed: ", "parts delivered: ", "readings refused: ")
    eventually(lambda: demo.said(*words), 20, because="a line with all numbers")
    password = endpoints["database"].split(":")[2].partition("@")[0]
    assert not demo.said(password)
    client_file = Path(endpoints["api"]["client_file"])
    assert demo.said(endpoints["api"]["url"], str(client_file))
    assert stat.S_IMODE(client_file.stat().st_mode) == 0o600
    form = urlencode({"grant_type": "client_credentials", **json.loads(client_file.read_bytes())})
    token_url = endpoints["api"]["url"] + "/oauth/token"
    with urlopen(token_url, data=form.encode(), timeout=10) as answer:  # noqa: S310 - the demo's own address
        assert json.load(answer)["scope"] == "viewer admin exporter"


def test_what_was_delivered_is_whole_by_the_receivers_kit(demo: Demo, tmp_path: Path) -> None:
    demo.ensure_up()
    receivers = demo.endpoints()["receivers"]
    for name in ("https", "sftp", "ftps", "hosted"):
        folder = demo.folder / "received" / name
        eventually(partial(manifests, folder), 60, because="a run is complete")
    secret = f"signing_secret=file:{receivers['https']['signing_secret_file']}"
    kit = Meterpost(tmp_path, {})

    def checked() -> list[Outcome]:
        outcome = kit("receiver", "check", demo.folder / "received", "--secret", secret, "--json")
        return [outcome] if all(job["manifests"] for job in outcome.json["jobs"]) else []

    [outcome] = eventually(checked, 60, because="a run of every job is complete")
    found = outcome.json
    assert (outcome.code, found["difference_count"]) == (0, 0), found["findings"]
    assert len(found["jobs"]) >= 4
    assert found["signatures_checked"] == found["requests_checked"] > 0


def test_the_same_data_folder_twice_is_refused(demo: Demo) -> None:
    demo.ensure_up()
    second = run_to_its_end(demo_environment(demo.folder))
    assert second.returncode == 2
    assert f"is in use by another process (id {demo.pid})" in second.stderr
    assert "Traceback" not in second.stdout + second.stderr
    assert demo.is_up


@pytest.mark.parametrize("name", ["ingest", "receiver-https"])
def test_a_service_that_is_killed_is_started_again(demo: Demo, name: str) -> None:
    demo.ensure_up()
    pid_file = demo.folder / "run" / f"{name}.pid"
    pid = noted_process(pid_file)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: noted_process(pid_file) not in {None, pid}, 20, because=f"{name} runs again")
    eventually(lambda: demo.said(f"{name} ended (killed by signal 9)"), 10, because="a line tells")
    assert demo.is_running


def test_a_second_instance_runs_beside_and_recovers_from_a_kill_of_its_supervisor(demo: Demo, tmp_path: Path) -> None:
    demo.ensure_up()
    with demo_in(tmp_path / "data") as other:
        other.start()
        mine, others = demo.endpoints(), other.endpoints()
        assert mine["kafka"] != others["kafka"]
        assert mine["database"].rpartition("@")[2] != others["database"].rpartition("@")[2]
        assert mine["receivers"]["https"]["url"] != others["receivers"]["https"]["url"]
        assert demo.is_running
        before = other.processes()
        assert len(before) > len(STARTED)
        other.kill()
        other.start()
        assert still_alive(before) == []
        eventually(other.received, 60, because="parts arrive")
        assert all(noted_process(other.folder / "run" / f"{name}.pid") for name in STARTED)
        after = other.processes()
        code, seconds = other.interrupt()
        assert (code, still_alive(after)) == (0, [])
        assert seconds < 10
    assert demo.is_running


@pytest.mark.alone
async def test_ctrl_c_ends_everything_and_the_next_start_goes_on(demo: Demo) -> None:
    demo.ensure_up()
    eventually(demo.received, 60, because="the first part arrives")
    processes = demo.processes()
    assert len(processes) > len(STARTED)
    code, seconds = demo.interrupt()
    assert (code, still_alive(processes)) == (0, [])
    assert seconds < 10
    assert not demo.is_up
    before = demo.received()
    content = {part: part.read_bytes() for part in before}
    began = time.monotonic()
    demo.start()
    eventually(lambda: demo.received() - before, 30, because="a new part arrives")
    assert time.monotonic() - began < 20
    assert {part: part.read_bytes() for part in before} == content
    connection = await asyncpg.connect(demo.endpoints()["database"])
    try:
        delivered = await connection.fetchval("SELECT count(*) FROM export_part WHERE state = 'delivered'")
        twice = await connection.fetchval(
            "SELECT count(*) FROM (SELECT FROM organization GROUP BY name HAVING count(*) > 1) d"
        )
    finally:
        await connection.close()
    assert delivered >= len(before)
    assert twice == 0


@pytest.mark.parametrize("server", ["kafka", "postgres"])
def test_ctrl_c_while_a_server_is_started_again_ends_everything(demo: Demo, server: str) -> None:
    demo.ensure_up()
    pid_file = demo.folder / server / f"{server}.pid"
    pid = noted_process(pid_file)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: noted_process(pid_file) not in {None, pid}, 20, because=f"{server} is started again")
    processes = demo.processes()
    code, seconds = demo.interrupt()
    assert (code, still_alive(processes)) == (0, [])
    assert seconds < 10


def test_ctrl_c_during_the_first_start_ends_everything(tmp_path: Path) -> None:
    with demo_in(tmp_path / "data") as demo:
        demo.begin()
        pid_file = demo.folder / "kafka" / "kafka.pid"
        eventually(lambda: noted_process(pid_file) is not None, 60, because="Kafka is being started")
        assert not demo.is_up
        processes = demo.processes()
        code, seconds = demo.interrupt()
        assert (code, still_alive(processes)) == (0, [])
        assert seconds < 10
        assert not demo.said("Traceback")


def test_without_java_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    environment = demo_environment(tmp_path / "data", PATH=str(tmp_path))
    environment.pop("JAVA_HOME", None)
    with demo_in(tmp_path / "data"):
        done = run_to_its_end(environment)
    assert done.returncode == 1
    sentences = done.stderr.strip().splitlines()
    assert len(sentences) == 1, done.stderr
    assert "install Java 17 or newer" in sentences[0]
    assert "KAFKA=host:port" in sentences[0]
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "variable"),
    [("METERPOST_METERS", "abc", "METERPOST_METERS"), ("METERPOST_TOPIC_PREFIX", "a b", "METERPOST_TOPIC_PREFIX")],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, name: str, value: str, variable: str) -> None:
    done = run_to_its_end(demo_environment(tmp_path / "data", **{name: value}))
    assert done.returncode == 2
    assert "these settings are wrong" in done.stderr
    assert variable in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
