"""`python -m bench.close`: how fast windows close, as a ratio to the limit of the same database.

One-minute readings of an hour lie in the real tables, as ingest leaves them (1 % corrected); the windows of each
resolution are closed by the real store, one after the other, all buckets together. Beside them the limits are measured:
`bare`, one aggregate over the readings of the window, by one connection; then by as many connections as closing has:
`sums`, the same divided among them; `floor`, these sums and nothing else, written as rows into a table with the same
keys, which nothing that writes a row for each meter can undercut; `write`, the same rows written ready made; and
`hash`, their lines put together, in order, and hashed. With `--growth` 5-minute windows alone are closed, of 5,000,
50,000 and 500,000 meters. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from services.core.windows import RESOLUTIONS_MINUTES
from services.local.postgres_server import PostgresServer
from services.platform.migrations import upgrade
from services.platform.postgres import Pool, connect_pool, transaction
from services.platform.settings import load as load_settings
from services.windowing.announcements import BucketKey
from services.windowing.closing_sql import PLAN_FOR_THE_RANGE
from services.windowing.counting_sql import LINE, ORDERED_LINES_SHA256
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TOPIC = "readings.logger"
WINDOWS_EACH = 6
"""At most so many windows of a resolution are measured; the median counts."""
GROWTH_METERS = (5_000, 50_000, 500_000)

# The sums are counted, else the planner would leave them out.
_BARE = """
    SELECT count(total) FROM (
        SELECT meter_id, sum(value) AS total FROM reading WHERE measured_at >= $1 AND measured_at < $2 GROUP BY meter_id
    ) AS sums
"""

# Of each statement by several connections the first parameters are their number and which of them it is.
_HALF_SUMS = """
    SELECT meter_id, bigint_sum(value) AS total FROM reading
    WHERE measured_at >= $3 AND measured_at < $4 AND meter_id % $1 = $2 GROUP BY meter_id
"""
_SUMS = f"SELECT count(total) FROM ({_HALF_SUMS}) AS sums"  # noqa: S608 - put together from constants
_FLOOR = f"""
    INSERT INTO written (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                         intervals_expected, pulses, energy_wh)
    SELECT $3, meter_id, 1, $5, $5, $5, total, total FROM ({_HALF_SUMS}) AS sums ORDER BY meter_id
"""  # noqa: S608 - put together from constants
_READY_MADE = """
    DROP TABLE IF EXISTS ready_made;
    CREATE UNLOGGED TABLE ready_made AS
        SELECT * FROM measurement WHERE resolution_minutes = {resolution} AND window_start = '{start}';
    ANALYZE ready_made;
"""
_WRITE = """
    INSERT INTO written SELECT * FROM ready_made WHERE meter_id % $1 = $2 ORDER BY organization_id, meter_id
"""
_HASH = f"""
    SELECT {ORDERED_LINES_SHA256}
    FROM (SELECT meter_id, {LINE} AS line FROM ready_made WHERE meter_id % $1 = $2 ORDER BY meter_id) AS row
    GROUP BY meter_id % $3
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True)
class Load:
    """How many meters, for how many minutes, and which share of them sends registers."""

    meters: int
    minutes: int
    register_share: float


async def fill(url: str, load: Load) -> None:
    """Put meters and readings into the tables."""
    registers = int(load.meters * load.register_share)
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"""
        UPDATE catalog_revision SET revision = 1;
        INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Bench', 1);
        INSERT INTO site (site_id, organization_id, revision) VALUES (1, 1, 1);
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision)
            SELECT n, 1, 'Electricity', 'electricity', 1 FROM generate_series(1, {load.meters}) AS n;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                         register_modulus)
            SELECT n, '-infinity', 1, 'Meter ' || n, 1, 'kWh', 0.001, 1000000000
            FROM generate_series(1, {load.meters}) AS n;
        CREATE TABLE reading_day PARTITION OF reading FOR VALUES FROM ('2026-11-20Z') TO ('2026-11-21Z');
        CREATE TABLE superseded_day PARTITION OF reading_superseded FOR VALUES FROM ('2026-11-20Z') TO ('2026-11-21Z');
        INSERT INTO ingest_progress (topic, partition, next_offset, watermark, first_arrival, epoch, owner)
            VALUES ('{TOPIC}', 0, 100000000, '2026-11-20 20:00Z', '2026-11-20 10:00Z', 1, 'bench');
        """  # noqa: S608 - numbers of ours
    )
    for minute in range(load.minutes):
        measured_at = T0 + minute * MINUTE
        await connection.execute(
            f"""
            INSERT INTO reading (measured_at, arrived_at, value, source_offset, meter_id, revision, source_partition,
                                 source_place, interval_minutes, source_topic, is_register)
            SELECT $1::timestamptz, $1::timestamptz + interval '70 seconds',
                   CASE WHEN n <= {registers} THEN n * 1000 + {minute} * 7 ELSE (n + {minute}) % 97 END,
                   {minute} * {load.meters} + n, n, 0, 0, n % 20, 1, 1, n <= {registers}
            FROM generate_series(1, {load.meters}) AS n
            """,  # noqa: S608 - numbers of ours
            measured_at,
        )
        await connection.execute(
            "UPDATE reading SET revision = 1, value = value + 1, arrived_at = arrived_at + interval '30 seconds' "
            "WHERE measured_at = $1 AND (meter_id + $2) % 100 = 0",
            measured_at,
            minute,
        )
    await connection.execute("CHECKPOINT")
    await connection.close()


async def bare_aggregate(pool: Pool, start: datetime, end: datetime) -> float:
    """Return how long the database takes at least: the sums alone, of which nothing is kept."""
    async with transaction(pool) as connection:
        await connection.execute("SET LOCAL work_mem = '64MB'")
        started = time.perf_counter()
        await connection.fetchval(_BARE, start, end)
        return time.perf_counter() - started


async def side_by_side(pool: Pool, connections: int, statement: str, *arguments: object) -> float:
    """Return how long a statement takes, with its commit, that several connections share, planned as closing's is."""
    together = asyncio.Barrier(connections)
    started = []

    async def work(share: int) -> None:
        async with transaction(pool) as connection:
            await connection.execute(PLAN_FOR_THE_RANGE)
            await together.wait()
            started.append(time.perf_counter())
            await connection.execute(statement, connections, share, *arguments)

    await asyncio.gather(*(work(share) for share in range(connections)))
    return time.perf_counter() - min(started)


async def empty_table(pool: Pool) -> None:
    """Empty the table with the keys of a real one, into which the limits write."""
    async with transaction(pool) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS written (LIKE measurement INCLUDING ALL)")
        await connection.execute("TRUNCATE written")


async def parts_of_closing(pool: Pool, resolution: int, start: datetime, settings: WindowingSettings) -> list[float]:
    """Return how long writing and hashing a window's rows takes at least: they are ready, nothing else is done."""
    async with transaction(pool) as connection:
        await connection.execute(_READY_MADE.format(resolution=resolution, start=start.isoformat()))
    writing, hashing = [], []
    for _again in range(WINDOWS_EACH):
        await empty_table(pool)
        writing.append(await side_by_side(pool, settings.closing_connections, _WRITE))
        hashing.append(await side_by_side(pool, settings.closing_connections, _HASH, settings.buckets))
    return [statistics.median(writing), statistics.median(hashing)]


async def close(pool: Pool, load: Load, console: Console, resolutions: tuple[int, ...]) -> dict[str, float]:
    """Close the windows of these resolutions one by one."""
    settings = load_settings(WindowingSettings)
    store = WindowStore(pool, settings, (TOPIC,))
    await store.open(dict.fromkeys(RESOLUTIONS_MINUTES, T0))
    for _warm in range(2):
        await bare_aggregate(pool, T0, T0 + load.minutes * MINUTE)
    found: dict[str, float] = {}
    readings, seconds = 0, 0.0
    for resolution in (minutes for minutes in resolutions if minutes <= load.minutes):
        closing, bare, sums, floor = [], [], [], []
        for number in range(min(load.minutes // resolution, WINDOWS_EACH)):
            start = T0 + number * resolution * MINUTE
            end = start + resolution * MINUTE
            bare.append(await bare_aggregate(pool, start, end))
            sums.append(await side_by_side(pool, settings.closing_connections, _SUMS, start, end))
            await empty_table(pool)
            floor.append(await side_by_side(pool, settings.closing_connections, _FLOOR, start, end, resolution))
            started = time.perf_counter()
            reached = await store.advance(BucketKey(resolution, 0), end)
            closing.append(time.perf_counter() - started)
            if reached != end:
                raise SystemExit(f"closed to {reached} instead of {end}")
        console.print(
            f"{resolution:>2} min: closing {' '.join(f'{one:.3f}' for one in closing)}, "
            f"bare {' '.join(f'{one:.3f}' for one in bare)}, floor {' '.join(f'{one:.3f}' for one in floor)}"
        )
        name = f"{resolution}m"
        found[f"close_{name}_s"] = round(statistics.median(closing), 4)
        found[f"bare_{name}_s"] = round(statistics.median(bare), 4)
        found[f"ratio_{name}"] = round(statistics.median(closing) / statistics.median(bare), 2)
        found[f"sums_{name}_s"] = round(statistics.median(sums), 4)
        found[f"floor_{name}_s"] = round(statistics.median(floor), 4)
        found[f"floor_ratio_{name}"] = round(statistics.median(floor) / statistics.median(bare), 2)
        found[f"ratio_to_floor_{name}"] = round(statistics.median(closing) / statistics.median(floor), 2)
        writing, hashing = await parts_of_closing(pool, resolution, T0, settings)
        found[f"write_{name}_s"] = round(writing, 4)
        found[f"hash_{name}_s"] = round(hashing, 4)
        readings += len(closing) * resolution * load.meters
        seconds += sum(closing)
    return {**found, "readings_per_s": round(readings / seconds), "meters": load.meters, "minutes": load.minutes}


async def measure(load: Load, console: Console, resolutions: tuple[int, ...] = RESOLUTIONS_MINUTES) -> dict[str, float]:
    """Store the readings in a database of their own and close them."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="meterpost-bench-")))
        postgres = PostgresServer(data_folder=folder / "postgres")
        cleanup.callback(postgres.destroy)
        postgres.start()
        await asyncio.to_thread(upgrade, postgres.url())
        console.print(f"storing {load.meters * load.minutes:,} readings")
        await fill(postgres.url(), load)
        pool = await connect_pool(postgres.url(), max_size=4, statement_timeout_seconds=120)
        try:
            return await close(pool, load, console, resolutions)
        finally:
            pool.terminate()


async def growth(minutes: int | None, registers: float, console: Console) -> dict[str, float]:
    """Close 5-minute windows of ever more meters; return the figures of each load, and how they grew for ten times.

    Of so many windows that the first ones, which are slower, do not make the median.
    """
    found: dict[str, float] = {}
    before: dict[str, float] | None = None
    for meters in GROWTH_METERS:
        load = Load(meters, minutes or (30 if meters < GROWTH_METERS[-1] else 20), registers)
        one = await measure(load, console, (5,))
        shown = {name: one[f"{name}_5m_s"] for name in ("close", "bare", "floor", "write")}
        found |= {f"{name}_{meters}_s": value for name, value in shown.items()}
        found |= {f"{name}_{meters}": one[f"{name}_5m"] for name in ("ratio", "ratio_to_floor")}
        if before is not None:
            found |= {f"{name}_grew_to_{meters}": round(shown[name] / before[name], 2) for name in shown}
        before = shown
    first, last = GROWTH_METERS[0], GROWTH_METERS[-1]
    found["close_grew"] = round(found[f"close_{last}_s"] / found[f"close_{first}_s"], 1)
    return {**found, "meters_grew": last / first}


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.close", description=__doc__)
    parser.add_argument("--meters", type=int, default=50_000)
    parser.add_argument(
        "--minutes", type=int, help="of readings, 60; resolutions above it are left out (growth: 30, 20 for most)"
    )
    parser.add_argument("--registers", type=float, default=0.0, help="share of meters that send registers")
    parser.add_argument("--growth", action="store_true", help="5-minute windows of more and more meters instead")
    options = parser.parse_args()
    console = Console(stderr=True)
    if options.growth:
        result = asyncio.run(growth(options.minutes, options.registers, console))
    else:
        result = asyncio.run(measure(Load(options.meters, options.minutes or 60, options.registers), console))
    table = Table(title="closing", show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:,}")
    console.print(table)
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
