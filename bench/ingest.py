"""`python -m bench.ingest`: how fast ingest drains a topic, as a ratio to the limit of the same database.

Everything is real and on this machine: the broker, the database, the service as a process of its own. The limit is a
direct binary COPY of the same rows into the same keyed table, by one connection and nothing else. The last line printed
is JSON.
"""

import argparse
import asyncio
import json
import re
import time
from pathlib import Path

import aiohttp
import asyncpg
from rich.console import Console
from rich.table import Table

from bench.ingest_load import Load, copy_limit, fill, publish, register
from bench.servers import Servers, servers
from services.local.ports import free_port

STORED = "SELECT coalesce(sum(stored_count), 0)::bigint FROM ingest_progress"


async def drain(on: Servers, load: Load, readings: int) -> dict[str, float]:
    """Run the service until everything is stored; return what it took, from each meter's first reading on.

    Those the service cannot know to be new; once it has stored them it does.
    """
    ports = [free_port() for _ in range(load.processes)]
    services = [on.service("services.ingest", METERPOST_HEALTH_PORT=str(port)) for port in ports]
    connection = await asyncpg.connect(on.database_url)
    started, now, first, stored = 0.0, 0.0, 0, 0
    try:
        while stored < readings:
            await asyncio.sleep(0.02)
            stored, now = await connection.fetchval(STORED), time.perf_counter()
            if stored >= load.meters and not first:
                first, started = stored, now
            ended = [service for service in services if not service.is_running]
            if ended:
                raise SystemExit(ended[0].log_tail())
        histograms = [await _batch_histogram(port) for port in ports]
        peak = max(_peak_rss_mb(service.pid) for service in services)
    finally:
        for service in services:
            service.stop(5)
        await connection.close()
    together = [(bound, sum(found[place][1] for found in histograms)) for place, (bound, _) in enumerate(histograms[0])]
    return {
        "readings_per_s": (readings - first) / (now - started),
        "p50_batch_ms": _quantile(together, 0.5) * 1000,
        "p99_batch_ms": _quantile(together, 0.99) * 1000,
        "peak_rss_mb": peak,
    }


async def _batch_histogram(port: int) -> list[tuple[float, float]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    found = re.findall(r'meterpost_ingest_batch_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    return [(float(bound), float(count)) for bound, count in found]


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """Return a quantile of a cumulative histogram, interpolated inside its bucket."""
    wanted = buckets[-1][1] * share
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            return lower + (bound - lower) * ((wanted - below) / (count - below) if count > below else 1.0)
        lower, below = bound, count
    return lower


def _peak_rss_mb(pid: int | None) -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(match[1]) / 1024 if match else 0.0


async def measure(load: Load, console: Console) -> dict[str, float]:
    """Run the whole bench."""
    async with servers() as on:
        await register(on.database_url, load)
        console.print(f"publishing {load.readings:,} readings")
        readings, corrections = await publish(on.kafka, load)
        console.print("measuring the limit")
        limit = await copy_limit(on.database_url, load)
        if load.stored_before:
            console.print(f"storing {load.stored_before:,} readings before")
            await fill(on.database_url, load)
        console.print("draining")
        found = await drain(on, load, readings)
    return {
        "readings_per_s": round(found["readings_per_s"]),
        "copy_limit_rows_per_s": round(limit),
        "ratio": round(found["readings_per_s"] / limit, 3),
        "p50_batch_ms": round(found["p50_batch_ms"], 1),
        "p99_batch_ms": round(found["p99_batch_ms"], 1),
        "peak_rss_mb": round(found["peak_rss_mb"], 1),
        "readings": readings,
        "corrections": corrections,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a load."""
    parser.add_argument("--meters", type=int, default=50_000)
    parser.add_argument("--minutes", type=int, default=100)
    parser.add_argument("--per-record", type=int, default=20)
    parser.add_argument("--corrections", type=float, default=0.01, help="share of readings that are corrected")
    parser.add_argument("--partitions", type=int, default=8, help="of each reading topic")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--stored-before", type=int, default=0, help="readings that the table holds already")


def load_of(options: argparse.Namespace) -> Load:
    """Return the load that the options describe."""
    return Load(
        meters=options.meters,
        minutes=options.minutes,
        per_record=options.per_record,
        correction_share=options.corrections,
        partitions=options.partitions,
        processes=options.processes,
        stored_before=options.stored_before,
    )


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    add_options(parser)
    console = Console(stderr=True)
    result = asyncio.run(measure(load_of(parser.parse_args()), console))
    table = Table(title="ingest", show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:,}")
    console.print(table)
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
