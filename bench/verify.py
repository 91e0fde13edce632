"""`python -m bench.verify`: what proving closed windows costs, beside closing them.

Two loads, each in a database of its own, all resolutions: many meters with one-minute readings of some minutes (as
`bench.close` stores them), and few meters over a long time: a day of 198 channels every 5 minutes and 32 months of an
hourly meter, in as many partitions of days. Any difference ends the bench. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from bench.close import T0, TOPIC, Load, fill
from services.core.windows import RESOLUTIONS_MINUTES
from services.ingest.day_partitions import day_partitions
from services.local.postgres_server import PostgresServer
from services.platform.migrations import upgrade
from services.platform.partitions import create_partitions
from services.platform.postgres import Pool, connect_pool
from services.platform.settings import load as load_settings
from services.windowing.announcements import BucketKey
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore
from services.windowing.verification import verify

CHANNELS = 198
LONG_START, LONG_END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC)
LONG_DAY = datetime(2026, 8, 30, tzinfo=UTC)
DAYS_AT_ONCE = 50


async def fill_long(url: str) -> None:
    """Put the few meters of a long time into the tables."""
    pool = await connect_pool(url, max_size=1, statement_timeout_seconds=120)
    days = [LONG_START + timedelta(days=number) for number in range((LONG_END - LONG_START).days)]
    for first in range(0, len(days), DAYS_AT_ONCE):
        some = days[first : first + DAYS_AT_ONCE]
        await create_partitions(pool, [part for day in some for part in day_partitions(day.date())])
    pool.terminate()
    connection_alone = await asyncpg.connect(url)
    await connection_alone.execute(
        f"""
        UPDATE catalog_revision SET revision = 1;
        INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Bench', 1);
        INSERT INTO site (site_id, organization_id, revision) VALUES (1, 1, 1);
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision)
            SELECT n, 1, 'Electricity', 'electricity', 1 FROM generate_series(1, {CHANNELS + 1}) AS n;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse)
            SELECT n, '-infinity', 1, 'Meter ' || n, 1, 'kWh', 0.001 FROM generate_series(1, {CHANNELS + 1}) AS n;
        INSERT INTO ingest_progress (topic, partition, next_offset, watermark, first_arrival, epoch, owner)
            VALUES ('{TOPIC}', 0, 100000000, '{LONG_END + timedelta(days=1)}', '{LONG_START}', 1, 'bench');
        INSERT INTO reading (measured_at, arrived_at, value, source_offset, meter_id, revision, source_partition,
                             source_place, interval_minutes, source_topic, is_register)
        SELECT at, at + interval '5 minutes', n, n, n, 0, 0, 0, 5, 1, false
        FROM generate_series('{LONG_DAY}'::timestamptz, '{LONG_DAY}'::timestamptz + interval '23:55',
                             interval '5 minutes') AS at, generate_series(1, {CHANNELS}) AS n
        UNION ALL
        SELECT at, at + interval '1 hour', 7, 7, {CHANNELS + 1}, 0, 0, 0, 60, 1, false
        FROM generate_series('{LONG_START}'::timestamptz, '{LONG_END}'::timestamptz - interval '1 hour',
                             interval '1 hour') AS at;
        CHECKPOINT;
        """  # noqa: S608 - numbers and times of ours
    )
    await connection_alone.close()


async def close_and_verify(pool: Pool, start: datetime, end: datetime) -> dict[str, float]:
    """Close everything from `start` to `end`, then verify it; return the seconds of both, and how much it was."""
    store = WindowStore(pool, load_settings(WindowingSettings), (TOPIC,))
    await store.open(dict.fromkeys(RESOLUTIONS_MINUTES, start))
    began = time.perf_counter()
    for resolution in RESOLUTIONS_MINUTES:
        key = BucketKey(resolution, 0)  # the others are closed along
        while (reached := await store.advance(key, end)) is not None and reached < end:
            pass
        await store.move_closed(resolution)
    closing = time.perf_counter() - began
    windows = rows = 0
    began = time.perf_counter()
    for resolution in RESOLUTIONS_MINUTES:
        async for step in verify(pool, resolution, start, end, tell_at_most=1):
            if step.difference_count or step.unverifiable:
                raise SystemExit(f"windows of {resolution} minutes are not what they must be: {step}")
            windows, rows = windows + step.windows, rows + step.rows
    return {"close_s": closing, "verify_s": time.perf_counter() - began, "windows": windows, "rows": rows}


async def measure(fill_it: Callable[[str], Awaitable[None]], start: datetime, end: datetime) -> dict[str, float]:
    """Fill a database of its own, close and verify."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="meterpost-bench-")))
        postgres = PostgresServer(data_folder=folder / "postgres")
        cleanup.callback(postgres.destroy)
        postgres.start()
        await asyncio.to_thread(upgrade, postgres.url())
        await fill_it(postgres.url())
        pool = await connect_pool(postgres.url(), max_size=4, statement_timeout_seconds=120)
        try:
            return await close_and_verify(pool, start, end)
        finally:
            pool.terminate()


async def measure_both(meters: int, minutes: int) -> dict[str, float]:
    """Return the figures of both loads."""

    async def fill_many(url: str) -> None:
        await fill(url, Load(meters, minutes, 0.0))

    found: dict[str, float] = {}
    loads = [
        ("many", await measure(fill_many, T0, T0 + timedelta(minutes=minutes))),
        ("long", await measure(fill_long, LONG_START, LONG_END)),
    ]
    for name, one in loads:
        found |= {f"{name}_{figure}": round(value, 3) for figure, value in one.items()}
        found[f"{name}_ratio"] = round(one["verify_s"] / one["close_s"], 2)
    return {**found, "meters": meters, "minutes": minutes}


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.verify", description=__doc__)
    parser.add_argument("--meters", type=int, default=10_000)
    parser.add_argument("--minutes", type=int, default=60, help="of readings")
    options = parser.parse_args()
    result = asyncio.run(measure_both(options.meters, options.minutes))
    table = Table(title="verifying", show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:,}")
    Console(stderr=True).print(table)
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
