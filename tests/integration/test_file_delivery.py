"""Delivery of CSV files by the real process: exact content, and one file whatever the moment of a crash."""

import csv
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from pyftpdlib.filesystems import AbstractedFS

from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock
from tests.support.exports import NO_KAFKA, Exports, at, delivering
from tests.support.file_servers import FileServer, Server, in_process_ftps, in_process_sftp
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async

SERVERS: dict[str, Server] = {"sftp": in_process_sftp(by_key=True), "ftps": in_process_ftps()}
# Where a process dies, and what it leaves there: nothing, the part under its hidden name, or the part in place.
CRASH_POINTS = {
    "delivery.before_send": "nothing",
    "delivery.body_written": "hidden",
    "delivery.before_rename": "hidden",
    "delivery.after_rename": "in place",
    "delivery.after_answer": "in place",
    "delivery.before_commit": "in place",
}
PART_BYTES = 500_000
QUICK = {"METERPOST_LEASE_SECONDS": "1", "METERPOST_LOOK_SECONDS": "0.05"}


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
    with running(platform):
        crashing = {**QUICK, "METERPOST_CRASH_AT": point}
        process = platform.start("services.delivery", server.transport, environment=crashing)
        await eventually_async(lambda: process.exit_code is not None, 30, because="the process has died")
        assert process.exit_code == -9
        assert await exports.attempts(job_id) == []
        before = set(server.files())
        platform.start("services.delivery", server.transport, environment=QUICK)
        await until_delivered(exports, job_id, 2)
    left = {"nothing": [], "hidden": [True], "in place": [False]}
    assert [name.startswith(".") for name in before] == left[CRASH_POINTS[point]]
    files = server.files()
    assert len(files) == 2
    assert not any(name.startswith(".") for name in files)
    assert all(content.count(b"\n") == 201 for content in files.values())
    reasons = [reason for _part, _outcome, reason in await exports.attempts(job_id)]
    assert reasons == ["already_there" if CRASH_POINTS[point] == "in place" else "stored", "stored"]


class Brake:
    """Makes both servers write slowly while it is on."""

    on = threading.Event()


class SlowSftp(asyncssh.SFTPServer):
    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Write a half, and the rest when the brake is off: a part comes in very few requests."""
        half = len(data) // 2
        await _done(super().write(file_obj, offset, data[:half]))
        file_obj.flush()  # type: ignore[attr-defined] # it is a file
        await eventually_async(lambda: not Brake.on.is_set(), 60)
        await _done(super().write(file_obj, offset + half, data[half:]))
        return len(data)


async def _done(written: int | Awaitable[int]) -> None:
    if not isinstance(written, int):
        await written


class SlowFtps(AbstractedFS):  # type: ignore[misc] # the package has no types
    def open(self, filename: str, mode: str) -> Any:
        stream = super().open(filename, mode)
        write = stream.write

        def slowly(data: bytes) -> int:
            if Brake.on.is_set():
                time.sleep(0.1)
                stream.flush()
            return int(write(data))

        return SimpleNamespace(write=slowly, close=stream.close, name=stream.name, closed=False, read=stream.read)


async def until_half_there(server: FileServer) -> None:
    """Wait until a hidden file holds some of the part."""
    await eventually_async(
        lambda: any(name.startswith(".") and 0 < len(body) < PART_BYTES for name, body in server.files().items()),
        30,
        because="the body is on its way",
    )


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("transport", ["sftp", "ftps"])
async def test_killed_or_frozen_in_the_middle_of_the_body(
    exports: Exports, tmp_path: Path, transport: str, signal_number: signal.Signals
) -> None:
    """Another process takes over; what the first one goes on with, once it wakes, changes nothing."""
    certificates = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    serve = in_process_sftp(files=SlowSftp) if transport == "sftp" else in_process_ftps(files=SlowFtps)
    await exports.seed(meters=10_000)
    await exports.close_windows(60, at(8), at(10))
    async with serve(tmp_path, certificates) as server:
        job_id = await exports.add_job(dict(server.settings), transport=transport, resolution=60)
        Brake.on.set()
        with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
            first = platform.start("services.delivery", transport, environment=QUICK)
            try:
                await until_half_there(server)
                assert first.pid is not None
                os.kill(first.pid, signal_number)
            finally:
                Brake.on.clear()
            platform.start("services.delivery", transport, environment=QUICK)
            await until_delivered(exports, job_id, 2)
            files, attempts = server.files(), await exports.attempts(job_id)
            if signal_number == signal.SIGSTOP:
                os.kill(first.pid, signal.SIGCONT)
                await eventually_async(lambda: "superseded" in first.log_tail(50), 40, because="its result is refused")
                assert first.is_running
            await eventually_async(lambda: server.files() == files, because="nothing else is there")
        assert await exports.attempts(job_id) == attempts
    assert [name.startswith(".") for name in files] == [False, False]
    assert all(content.count(b"\n") == 10_001 for content in files.values())
    assert attempts == [(1, "delivered", "stored")] * 2


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
