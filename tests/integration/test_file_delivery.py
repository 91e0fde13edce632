"""Delivery of CSV files by the real process: exact content, and one file whatever the moment of a crash."""

import csv
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock
from tests.support.exports import NO_KAFKA, Exports, at, delivering
from tests.support.file_servers import FileServer, Server, in_process_ftps, in_process_sftp
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async

SERVERS: dict[str, Server] = {"sftp": in_process_sftp(by_key=True), "ftps": in_process_ftps()}
# Each is where a process dies that has the part half on the server, complete under its hidden name, in place.
CRASH_POINTS = ["delivery.body_written", "delivery.before_rename", "delivery.after_rename"]


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FileServer]:
    certificates: CertificateFiles = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    async with SERVERS[request.param](tmp_path, certificates) as started:
        yield started


async def until_delivered(exports: Exports, job_id: int, runs: int) -> None:
    async def all_delivered() -> bool:
        return await exports.states(job_id) == ["delivered"] * runs

    await eventually_async(all_delivered, 30)


async def test_runs_arrive_in_parts_of_10_000_rows_with_a_header_each(exports: Exports, server: FileServer) -> None:
    await exports.seed(meters=3_000, name="=Meter")
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job({**server.settings, "line_end": "crlf"}, transport=server.transport)
    async with delivering(exports.url, transport=server.transport):
        await until_delivered(exports, job_id, 1)
    stem = f"{job_id}-Hourly_meters_measurements_20261120T080000Z_20261120T090000Z"
    files = server.files()
    assert sorted(files) == [f"{stem}_1of2.csv", f"{stem}_2of2.csv"]
    parts = [files[name].decode("utf-8") for name in sorted(files)]
    rows = [list(csv.reader(part.splitlines())) for part in parts]
    assert [len(part) for part in rows] == [10_001, 2_001]
    assert all(part.endswith("\r\n") and part.count("\n") == part.count("\r\n") for part in parts)
    assert rows[0][0] == rows[1][0]
    assert rows[0][1] == [
        "1", "Heat", "'=Meter 1", "kWh", "2026-11-20T08:00:00Z", "15", "2", "Site 2", "4.02", "1.01", "N/A", "N/A",
    ]  # fmt: skip
    found = [(row[4], int(row[0])) for part in rows for row in part[1:]]
    assert found == sorted(found)
    assert len(set(found)) == 12_000


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_crash_at_any_point_leaves_one_exact_file(
    exports: Exports, server: FileServer, tmp_path: Path, point: str
) -> None:
    await exports.seed(meters=50)
    await exports.close_windows(15, at(8), at(10))
    job_id = await exports.add_job(dict(server.settings), transport=server.transport)
    platform = Platform(NO_KAFKA, exports.url, "", tmp_path)
    environment = {"METERPOST_LEASE_SECONDS": "1", "METERPOST_LOOK_SECONDS": "0.05"}
    with running(platform):
        crashing = {**environment, "METERPOST_CRASH_AT": point}
        process = platform.start("services.delivery", server.transport, environment=crashing)
        await eventually_async(lambda: process.exit_code is not None, 30, because="the process has died")
        assert process.exit_code == -9
        assert await exports.attempts(job_id) == []
        before = set(server.files())
        platform.start("services.delivery", server.transport, environment=environment)
        await until_delivered(exports, job_id, 2)
    assert len(before) == 1
    assert [name.startswith(".") for name in before] == [point != "delivery.after_rename"]
    files = server.files()
    assert len(files) == 2
    assert not any(name.startswith(".") for name in files)
    assert all(content.count(b"\n") == 201 for content in files.values())
    reasons = [reason for _part, _outcome, reason in await exports.attempts(job_id)]
    assert reasons == ["already_there" if point == "delivery.after_rename" else "stored", "stored"]


async def test_an_approved_key_lets_the_runs_go_that_wait(exports: Exports, tmp_path: Path) -> None:
    certificates = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    async with in_process_sftp()(tmp_path, certificates) as server:
        await exports.seed(meters=1)
        await exports.close_windows(15, at(8), at(9))
        job_id = await exports.add_job({**server.settings, "host_keys": []}, transport="sftp")
        async with delivering(exports.url, transport="sftp"):

            async def stopped() -> bool:
                return (await exports.progress(job_id)).get("stopped_reason") == "host_key_unknown"

            await eventually_async(stopped)
            assert server.files() == {}
            await exports.add_version(job_id, server.settings, effective_from=at(12), transport="sftp")
            await exports.execute("UPDATE export_job SET resumed_at = now() + interval '1 minute'")
            await until_delivered(exports, job_id, 1)
    assert len(server.files()) == 1
