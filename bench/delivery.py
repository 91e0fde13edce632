"""`python -m bench.delivery`: rows/s from stored measurements to the receiver's disk, and how soon after the cut-off.

Everything is real and on this machine: the database, one delivery process of each transport after the other, a receiver
as a process of its own that writes files (SFTP and HTTPS have them on the disk before they answer). The limit is COPY
out of the same rows, the twelve columns with their names, as CSV in the same order, by one connection and nothing else.
A long run shows what memory a run of millions of rows takes; a live part runs the whole platform (see
bench.delivery_live). The last line printed is JSON.
"""

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from bench.delivery_live import LiveLoad, measure_live
from bench.delivery_load import T0, Target, Windows, add_jobs, copy_out, fill, set_closed, targets, vault
from bench.servers import Servers, servers
from services.local.processes import ChildProcess

DEADLINE_SECONDS = 600.0
LOOPBACK_NETWORKS = "127.0.0.0/8, ::1"
FREQUENCY_MINUTES, RESOLUTION_MINUTES = 5, 1
LONG_FREQUENCY_MINUTES, LONG_RESOLUTION_MINUTES = 1440, 15
LONG_WINDOWS = LONG_FREQUENCY_MINUTES // LONG_RESOLUTION_MINUTES


@dataclass(frozen=True)
class Load:
    """How much of what is delivered."""

    meters: int
    slots: int
    jobs: int
    long_rows: int
    transports: tuple[str, ...]


async def deliver(
    on: Servers, target: Target, windows: Windows, jobs: int, frequency: int
) -> tuple[float, dict[str, float]]:
    """Deliver the windows by so many jobs; return rows/s, and what the process took."""
    _vault, keys_file = vault(on.folder)
    await set_closed(on.database_url, windows, T0)
    job_ids = await add_jobs(on, target, [windows.organization_id] * jobs, frequency, windows.resolution_minutes, T0)
    with target.running() as receiver:
        process = on.service(
            "services.delivery",
            target.transport,
            METERPOST_ALLOWED_DESTINATIONS=LOOPBACK_NETWORKS,
            METERPOST_SECRET_KEYS_FILE=str(keys_file),
            METERPOST_LOOK_SECONDS="0.1",
            METERPOST_HEALTH_PORT="0",
        )
        connection = await asyncpg.connect(on.database_url)
        try:
            await _until(
                connection, process, "SELECT count(*) FROM export_job_progress WHERE job_id = ANY ($1)", job_ids, jobs
            )
            idle_mb = rss_mb(process, "VmRSS")
            cpu_before = cpu_seconds(process), cpu_seconds(receiver)
            started = time.perf_counter()
            await set_closed(on.database_url, windows, windows.end)
            runs = jobs * (windows.end - T0) // timedelta(minutes=frequency)
            await _until(
                connection,
                process,
                "SELECT count(*) FROM export_run WHERE job_id = ANY ($1) AND state = 'delivered'",
                job_ids,
                runs,
            )
            seconds = time.perf_counter() - started
            cpu = cpu_seconds(process) - cpu_before[0], cpu_seconds(receiver) - cpu_before[1]
            told = await connection.fetchval(
                "SELECT sum(row_count)::bigint FROM export_run WHERE job_id = ANY ($1)", job_ids
            )
            peak_mb = rss_mb(process, "VmHWM")
        finally:
            process.stop(10)
            await connection.close()
        rows = windows.rows * jobs
        found = await asyncio.to_thread(received_rows, target.folder)
        if not told == found == rows:
            raise SystemExit(f"{rows:,} rows were to be delivered, {told:,} were said to be, {found:,} arrived")
    return rows / seconds, {
        "seconds": seconds,
        "idle_mb": idle_mb,
        "peak_mb": peak_mb,
        "cpu_us_per_row": cpu[0] / rows * 1e6,
        "receiver_cpu_us_per_row": cpu[1] / rows * 1e6,
    }


async def _until(
    connection: "asyncpg.Connection[asyncpg.Record]", process: ChildProcess, query: str, job_ids: list[int], count: int
) -> None:
    ends = time.monotonic() + DEADLINE_SECONDS
    while await connection.fetchval(query, job_ids) < count:
        if time.monotonic() > ends or not process.is_running:
            raise SystemExit(process.log_tail())
        await asyncio.sleep(0.02)


def received_rows(folder: Path) -> int:
    """Return how many rows lie in a receiver's folder."""
    files = [*folder.rglob("[!.]*.csv"), *folder.rglob("[!.]*.json")]
    return sum(
        content.count(b'"METER_ID":') if file.suffix == ".json" else content.count(b"\n") - 1
        for file in files
        for content in [file.read_bytes()]
    )


def rss_mb(process: ChildProcess, name: str) -> float:
    """Return what a process holds (VmRSS) or held at the peak (VmHWM)."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(encoding="ascii"))
    return int(match[1]) / 1024 if match else 0.0


def cpu_seconds(process: ChildProcess) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def measure(load: Load, console: Console) -> tuple[dict[str, float], Table]:
    """Measure each transport against the limit, then the long run."""
    table = Table("what", "rows", "rows/s", "of COPY out", "own CPU µs/row", "receiver's", "peak MB", title="delivery")
    result: dict[str, float] = {}
    async with servers() as on:
        receivers = targets(on.folder)
        windows = Windows(1, load.meters, load.slots * FREQUENCY_MINUTES // RESOLUTION_MINUTES, RESOLUTION_MINUTES)
        console.print(f"storing {windows.rows:,} rows")
        await fill(on.database_url, windows)
        limit = await copy_out(on.database_url, windows)
        table.add_row("COPY out", f"{windows.rows:,}", f"{limit:,.0f}", "1", "", "", "")
        for name in load.transports:
            console.print(f"delivering over {name}")
            rate, took = await deliver(on, receivers[name], windows, load.jobs, FREQUENCY_MINUTES)
            _add(table, name, windows.rows * load.jobs, rate, limit, took)
            result[f"{name}_rows_per_s"] = round(rate)
            result[f"{name}_peak_rss_mb"] = round(took["peak_mb"], 1)
        result["copy_out_rows_per_s"] = round(limit)
        if "sftp" in load.transports:
            result["sftp_ratio"] = round(result["sftp_rows_per_s"] / limit, 3)
        if load.long_rows:
            long = Windows(2, -(-load.long_rows // LONG_WINDOWS), LONG_WINDOWS, LONG_RESOLUTION_MINUTES)
            console.print(f"storing {long.rows:,} rows of one run")
            await fill(on.database_url, long)
            console.print("delivering them over sftp")
            rate, took = await deliver(on, receivers["sftp"], long, 1, LONG_FREQUENCY_MINUTES)
            _add(table, "sftp, one run", long.rows, rate, limit, took)
            result |= {
                "long_run_rows": long.rows,
                "long_run_rows_per_s": round(rate),
                "long_run_peak_rss_mb": round(took["peak_mb"], 1),
            }
    return result, table


def _add(table: Table, name: str, rows: int, rate: float, limit: float, took: dict[str, float]) -> None:
    table.add_row(
        name,
        f"{rows:,}",
        f"{rate:,.0f}",
        f"{rate / limit:.2f}",
        f"{took['cpu_us_per_row']:.2f}",
        f"{took['receiver_cpu_us_per_row']:.2f}",
        f"{took['peak_mb']:.0f} (idle {took['idle_mb']:.0f})",
    )


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.delivery", description=__doc__)
    parser.add_argument("--meters", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=10, help="runs of each job, of five one-minute windows each")
    parser.add_argument("--jobs", type=int, default=4, help="that deliver the same rows, to one receiver")
    parser.add_argument("--long-rows", type=int, default=10_000_000, help="of one run over SFTP; 0: none")
    parser.add_argument("--transports", default="https,sftp,ftps")
    parser.add_argument("--live-meters", type=int, default=10_000, help="0: no live part")
    parser.add_argument("--live-slots", type=int, default=6, help="five-minute slots that are measured")
    parser.add_argument(
        "--live-speed", type=float, default=12.0, help="how fast the platform's clock runs; 1: as it is"
    )
    options = parser.parse_args()
    console = Console(stderr=True)
    transports = tuple(name for name in options.transports.split(",") if name)
    load = Load(options.meters, options.slots, options.jobs, options.long_rows, transports)
    result, table = asyncio.run(measure(load, console))
    if options.live_meters:
        live = LiveLoad(options.live_meters, options.live_slots, options.live_speed)
        console.print(f"delivering {live.slots} slots of {live.meters:,} meters live")
        result |= asyncio.run(measure_live(live, console))
    console.print(table)
    if options.live_meters:
        console.print(
            f"from the cut-off to the last part at the receiver: median {result['cut_off_to_received_p50_s']} s, "
            f"99 of 100 runs within {result['cut_off_to_received_p99_s']} s"
        )
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
