"""`python -m bench.close_live`: how long after its cut-off a window is closed, under steady live traffic.

Loggers publish each minute's readings in the minute after it, spread over it, to topics on which the broker sets the
time; the real services store and close. The bench asks the database every 10 ms how far each bucket is closed: a window
counts as closed when that is first seen, so what is measured is never too short. The last line printed is JSON.
"""

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median, quantiles

import asyncpg
from rich.console import Console

from bench.ingest_live import uploads
from bench.ingest_load import Load, register
from bench.servers import Servers, servers
from services.core.times import floor_to
from services.platform.clock import SystemClock
from services.platform.kafka import Producer
from services.platform.kafka_admin import Admin
from services.platform.topics import READINGS_LOGGER, load_topics

MINUTE = timedelta(minutes=1)
LOOK_SECONDS = 0.01
SPREAD_SECONDS = 50
"""A minute's uploads are published evenly over so much of the next."""
GRACE = timedelta(seconds=60)
MOST_SECONDS = 20 * 60
_FRONTIERS = """
    SELECT resolution_minutes, bucket, closed_until FROM window_frontier
    UNION ALL
    SELECT resolution_minutes, -1, closed_until FROM window_closed
"""
EVERYWHERE = -1
"""Stands for all buckets together: then everybody is told."""


@dataclass
class Closings:
    """How long after its cut-off each window was seen closed, in seconds, by bucket and for all buckets together."""

    counted_from: datetime
    frontiers: dict[tuple[int, int], datetime] = field(default_factory=dict)
    by_bucket: list[float] = field(default_factory=list)
    everywhere: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def see(self, resolution_minutes: int, bucket: int, closed_until: datetime, now: datetime) -> None:
        """Note that windows which start before `closed_until` are closed. Cut-offs before the start do not count."""
        step = timedelta(minutes=resolution_minutes)
        before = self.frontiers.get((resolution_minutes, bucket), closed_until)
        self.frontiers[resolution_minutes, bucket] = closed_until
        while before < closed_until:
            before += step
            cut_off = before + GRACE
            if cut_off > self.counted_from:
                late = (now - cut_off).total_seconds()
                (self.everywhere[resolution_minutes] if bucket == EVERYWHERE else self.by_bucket).append(late)


async def publish(producer: Producer, load: Load, stopping: asyncio.Event) -> None:
    """Publish as loggers do: minute by minute, each logger at its own moment of the minute after."""
    loggers = load.meters // load.per_record
    minute = floor_to(SystemClock().now(), MINUTE)
    waiting = uploads(load, minute)
    while not stopping.is_set():
        minute += MINUTE
        for number in range(loggers):
            device_id, value = next(waiting)
            due = minute + timedelta(seconds=number * SPREAD_SECONDS / loggers)
            await asyncio.sleep(max(0.0, (due - SystemClock().now()).total_seconds()))
            await (await producer.enqueue(READINGS_LOGGER, value, key=device_id.encode()))
            if stopping.is_set():
                return


async def look(url: str, found: Closings, windows: int) -> None:
    """Follow how far windows are closed until `windows` of one minute have been."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(MOST_SECONDS):
            while len(found.everywhere[1]) < windows:
                rows = await connection.fetch(_FRONTIERS)
                now = SystemClock().now()
                for row in rows:
                    found.see(row[0], row[1], row[2], now)
                await asyncio.sleep(LOOK_SECONDS)
    finally:
        await connection.close()


@asynccontextmanager
async def running(load: Load, workers: int, look_every_seconds: float | None) -> AsyncIterator[Servers]:
    """Start everything that takes part."""
    async with servers() as on:
        await register(on.database_url, load)
        connection = await asyncpg.connect(on.database_url)
        await connection.execute(
            "INSERT INTO site (site_id, organization_id, revision) VALUES (1, 1, 1);"
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "SELECT meter_id, '-infinity', 1, 'Meter ' || meter_id, 1, 'kWh', 0.001 FROM meter"
        )
        await connection.close()
        admin = Admin(on.kafka)
        await admin.start()
        await admin.declare(load_topics())
        await admin.stop()
        grace = {"METERPOST_GRACE_SECONDS": str(int(GRACE.total_seconds()))}
        looking = {} if look_every_seconds is None else {"METERPOST_LOOK_EVERY_SECONDS": str(look_every_seconds)}
        on.service("services.ingest", **grace)
        for _worker in range(workers):
            on.service("services.windowing", **grace, **looking)
        yield on


async def measure(load: Load, workers: int, windows: int, look_every_seconds: float | None) -> dict[str, object]:
    """Run the whole bench."""
    async with running(load, workers, look_every_seconds) as on:
        producer = Producer(on.kafka, client="bench")
        await producer.start()
        stopping = asyncio.Event()
        publishing = asyncio.create_task(publish(producer, load, stopping))
        # The first minute with readings, and the first windows of all, are the start, not the steady state.
        found = Closings(SystemClock().now() + 2 * MINUTE + GRACE)
        await look(on.database_url, found, windows)
        stopping.set()
        await publishing
        await producer.stop()
        connection = await asyncpg.connect(on.database_url)
        rows = await connection.fetchval("SELECT count(*) FROM measurement WHERE resolution_minutes = 1")
        await connection.close()
    return {
        "cut_off_to_closed_p50_s": round(median(found.by_bucket), 2),
        "cut_off_to_closed_p99_s": round(quantiles(found.by_bucket, n=100)[98], 2),
        "cut_off_to_closed_everywhere_max_s": round(max(max(one) for one in found.everywhere.values() if one), 2),
        "windows": {f"{minutes}m": len(one) for minutes, one in sorted(found.everywhere.items()) if one},
        "buckets_closed": len(found.by_bucket),
        "rows_1m": rows,
        "meters": load.meters,
        "workers": workers,
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.close_live", description=__doc__)
    parser.add_argument("--meters", type=int, default=10_000)
    parser.add_argument("--per-record", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="processes of windowing")
    parser.add_argument("--windows", type=int, default=10, help="of one minute, each takes a minute")
    parser.add_argument("--look-every", type=float, help="seconds between looks that nothing is heard for")
    options = parser.parse_args()
    load = Load(meters=options.meters, minutes=1, per_record=options.per_record, correction_share=0, partitions=8)
    Console(stderr=True).print(f"{options.meters:,} meters live, about {options.windows + 4} minutes")
    result = asyncio.run(measure(load, options.workers, options.windows, options.look_every))
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
