"""`python -m bench.ingest`: how fast ingest drains a topic, as a ratio to the limit of the same database.

Everything is real and on this machine: the broker, the database, the service as a process of its own. The limit is a
direct binary COPY of the same rows into the same keyed table, by one connection and nothing else. The last line printed
is JSON.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import asyncpg
from rich.console import Console
from rich.table import Table

from bench.ingest_load import Load, copy_limit, publish, register
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.ports import free_port
from services.local.postgres_server import PostgresServer
from services.local.processes import ChildProcess
from services.local.settings import REPOSITORY
from services.platform.migrations import upgrade

STORED = "SELECT coalesce(sum(stored_count), 0)::bigint FROM ingest_progress"


async def drain(environment: dict[str, str], folder: Path, load: Load, readings: int) -> dict[str, float]:
    """Run the service until everything is stored; return what it took, from its first commit on."""
    ports = [free_port() for _ in range(load.processes)]
    services = [
        ChildProcess(
            name=f"ingest-{number}",
            command=[sys.executable, "-m", "services.ingest"],
            log_file=folder / f"ingest-{number}.log",
            pid_file=folder / f"ingest-{number}.pid",
            working_folder=REPOSITORY,
            environment={**os.environ, **environment, "METERPOST_HEALTH_PORT": str(port)},
        )
        for number, port in enumerate(ports)
    ]
    connection = await asyncpg.connect(environment["METERPOST_DATABASE_URL"])
    for service in services:
        service.start()
    started, now, first, stored = 0.0, 0.0, 0, 0
    try:
        while stored < readings:
            await asyncio.sleep(0.02)
            stored, now = await connection.fetchval(STORED), time.perf_counter()
            if stored and not first:
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
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="meterpost-bench-")))
        kafka = KafkaServer(data_folder=folder / "kafka", libraries=ensure_kafka_libraries())
        postgres = PostgresServer(data_folder=folder / "postgres")
        cleanup.callback(kafka.stop)
        kafka.start()
        cleanup.callback(postgres.destroy)
        postgres.start()
        environment = {
            "METERPOST_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "METERPOST_DATABASE_URL": postgres.url(),
        }
        await asyncio.to_thread(upgrade, postgres.url())
        await register(postgres.url(), load)
        console.print(f"publishing {load.readings:,} readings")
        readings, corrections = await publish(kafka.bootstrap_servers, load)
        console.print("measuring the limit")
        limit = await copy_limit(postgres.url(), load)
        console.print("draining")
        found = await drain(environment, folder, load, readings)
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


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--meters", type=int, default=50_000)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--per-record", type=int, default=20)
    parser.add_argument("--corrections", type=float, default=0.01, help="share of readings that are corrected")
    parser.add_argument("--partitions", type=int, default=8, help="of each reading topic")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    load = Load(
        meters=options.meters,
        minutes=options.minutes,
        per_record=options.per_record,
        correction_share=options.corrections,
        partitions=options.partitions,
        processes=options.processes,
    )
    console = Console(stderr=True)
    result = asyncio.run(measure(load, console))
    table = Table(title="ingest", show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:,}")
    console.print(table)
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
