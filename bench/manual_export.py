"""`python -m bench.manual_export`: how fast a manual export is, as a ratio to COPY out of the same rows.

Readings of 250 sites lie in the real tables. The real worker, a process of its own with its usual settings, computes
the rows from them and puts the file into a folder; its time is that from the claim to the finished file. The limit, in
the same run: the same rows lie ready in `measurement`, and one COPY gives them with the same twelve fields. Beside it:
COPY of a plain table that holds nothing but the twelve fields as text.

Then once more while 1,000 readings are stored every 50 ms, as live ingest does: how long each of these transactions
takes with the export beside it, and how long without. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from services.api.manual_exports import ManualExport, create_export, find_export
from services.core.manual_export import ExportFormat, WantedExport, WhenFull
from services.core.readings import ReadingVersion
from services.local.postgres_server import PostgresServer
from services.local.processes import ChildProcess
from services.local.settings import REPOSITORY
from services.platform.migrations import upgrade
from services.platform.postgres import Pool, connect_pool, transaction

DAY = datetime(2026, 11, 20, tzinfo=UTC)
RESOLUTION = 5
SITES = 250
LIVE_READINGS = 1_000
LIVE_EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class Load:
    """How many meters, each with how many hours of readings, how far apart."""

    meters: int
    hours: int
    cadence_minutes: int
    others: int
    """Meters of somebody else, with readings like these."""

    @property
    def end(self) -> datetime:
        """Where the readings end."""
        return DAY + timedelta(hours=self.hours)

    def wanted(self, export_format: ExportFormat) -> WantedExport:
        """Return the request for all of them."""
        return WantedExport(DAY, self.end, RESOLUTION, export_format)


async def fill(url: str, load: Load) -> None:
    """Put meters, readings and the closed windows into the tables."""
    connection = await asyncpg.connect(url)
    everybody = load.meters + load.others
    await connection.execute(
        f"""
        UPDATE catalog_revision SET revision = 1;
        INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Bench', 1), (2, 'Others', 1);
        INSERT INTO site (site_id, organization_id, revision) SELECT s, 1, 1 FROM generate_series(1, {SITES}) s;
        INSERT INTO site_description SELECT site_id, '-infinity', 1, 'Site number ' || site_id, 'UTC' FROM site;
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision)
            SELECT n, CASE WHEN n <= {load.meters} THEN 1 ELSE 2 END, 'Electricity', 'electricity', 1
            FROM generate_series(1, {everybody}) n;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                         cadence_minutes)
            SELECT n, '-infinity', 1, 'Meter ' || n, n % {SITES} + 1, 'kWh', 0.001, {load.cadence_minutes}
            FROM generate_series(1, {everybody}) n;
        CREATE TABLE measurement_all PARTITION OF measurement_5m FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
        """  # noqa: S608 - numbers of ours
    )
    for day in range(load.hours // 24 + 8):
        since, until = (f"{DAY + timedelta(days=day + more):%Y-%m-%d}Z" for more in (0, 1))
        for table in ("reading", "reading_superseded"):
            await connection.execute(
                f"CREATE TABLE {table}_{day} PARTITION OF {table} FOR VALUES FROM ('{since}') TO ('{until}')"
            )
    for step in range(load.hours * 60 // load.cadence_minutes):
        await connection.execute(
            f"""
            INSERT INTO reading (measured_at, arrived_at, value, source_offset, meter_id, revision, source_partition,
                                 source_place, interval_minutes, source_topic, is_register)
            SELECT $1::timestamptz, $1::timestamptz + interval '6 minutes', (n * 7 + {step}) % 997,
                   {step}::bigint * {everybody} + n, n, 0, 0, n % 20, {load.cadence_minutes}, 1, false
            FROM generate_series(1, {everybody}) n
            """,  # noqa: S608 - numbers of ours
            DAY + timedelta(minutes=step * load.cadence_minutes),
        )
        await connection.execute(
            "UPDATE reading SET revision = 1, value = value + 1 WHERE measured_at = $1 AND (meter_id + $2) % 100 = 0",
            DAY + timedelta(minutes=step * load.cadence_minutes),
            step,
        )
    await connection.execute(
        """
        INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                 intervals_expected, pulses, energy_wh)
        SELECT date_bin('5 minutes', measured_at, timestamptz 'epoch') AS start, meter_id, organization_id, 5, 1, 1,
               sum(value), sum(value)
        FROM reading JOIN meter USING (meter_id)
        GROUP BY start, organization_id, meter_id ORDER BY 1, 3, 2
        """
    )
    await connection.execute("VACUUM (ANALYZE) reading, measurement, meter, meter_configuration")
    await connection.execute("CHECKPOINT")
    await connection.close()


COPY_ROWS = """
    WITH described AS MATERIALIZED (
        SELECT meter_id, meter_type, c.name AS meter_name, unit, site_id, s.name AS site_name
        FROM meter JOIN meter_configuration c USING (meter_id) JOIN site_description s USING (site_id)
        WHERE organization_id = 1
    ), clock AS MATERIALIZED (
        SELECT window_start, to_char(window_start, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS text
        FROM generate_series($1::timestamptz, $2::timestamptz, interval '5 minutes') AS window_start
    )
    SELECT meter_id, meter_type, meter_name, unit, clock.text, resolution_minutes, site_id, site_name,
           coalesce(round(energy_wh * 12, 2)::text, 'N/A'), coalesce(round(energy_wh, 2)::text, 'N/A'),
           coalesce(round(volume * 12, 2)::text, 'N/A'), coalesce(round(volume, 2)::text, 'N/A')
    FROM measurement JOIN described USING (meter_id) JOIN clock USING (window_start)
    WHERE resolution_minutes = 5 AND window_start >= $1 AND window_start < $2 AND organization_id = 1
    ORDER BY window_start, meter_id
"""


async def copy_out(pool: Pool, load: Load) -> tuple[float, float]:
    """Return rows/s of COPY of the ready rows with their names, and of a plain table of the twelve fields."""
    size = 0

    async def take(data: bytes) -> None:
        nonlocal size
        size += len(data)

    async with transaction(pool) as connection:
        await connection.execute(
            "SELECT set_config('work_mem', '256MB', true), set_config('enable_nestloop', 'off', true), "
            "set_config('enable_mergejoin', 'off', true)"
        )
        started = time.perf_counter()
        done = await connection.copy_from_query(COPY_ROWS, DAY, load.end, output=take, format="csv")
        ready = int(done.split()[-1]) / (time.perf_counter() - started)
        await connection.execute(
            """
            CREATE TEMPORARY TABLE plain ON COMMIT DROP AS
            SELECT meter_id::text AS a, 'Electricity' AS b, 'Meter ' || meter_id AS c, 'kWh' AS d,
                   window_start::text AS e, '5' AS f, '17' AS g, 'Site number 17' AS h, energy_wh::text || '.00' AS i,
                   energy_wh::text || '.00' AS j, 'N/A' AS k, 'N/A' AS l
            FROM measurement WHERE organization_id = 1
            """
        )
        started = time.perf_counter()
        done = await connection.copy_from_table("plain", output=take, format="csv")
        plain = int(done.split()[-1]) / (time.perf_counter() - started)
    return ready, plain


async def export(pool: Pool, wanted: WantedExport, organization_id: int = 1) -> ManualExport:
    """Ask for an export and wait for its file."""
    async with transaction(pool) as connection:
        export_id = await create_export(connection, organization_id, "bench", wanted, WhenFull.REFUSE)
    while True:
        async with transaction(pool) as connection:
            found = await find_export(connection, organization_id, export_id)
        if found.is_over:
            if found.state != "done":
                raise SystemExit(f"the export {found.state}: {found.problem}")
            return found
        await asyncio.sleep(0.1)


def rate(done: ManualExport) -> float:
    """Return rows/s from the claim to the file."""
    if done.finished_at is None or done.started_at is None:
        raise RuntimeError("it is done")
    return done.row_count / (done.finished_at - done.started_at).total_seconds()


async def store_live(pool: Pool, stopping: asyncio.Event, load: Load, first: int) -> list[float]:
    """Store readings as they come in live; return how long each transaction took, in milliseconds."""
    took = []
    number = first
    columns = ReadingVersion._fields
    while not stopping.is_set():
        # After the range of the export: each reading a new one, as live.
        at = load.end + timedelta(minutes=number)
        rows = [ReadingVersion(at, at, 1, number, meter, 0, 0, 0, 1, 1, False) for meter in range(1, LIVE_READINGS + 1)]
        started = time.perf_counter()
        async with transaction(pool) as connection:
            await connection.copy_records_to_table("reading", records=rows, columns=columns)
        took.append((time.perf_counter() - started) * 1000)
        number += 1
        await asyncio.sleep(LIVE_EVERY_SECONDS)
    return took


async def live(pool: Pool, load: Load) -> dict[str, float]:
    """Measure live storing alone, then beside an export."""
    found = {}
    for name, first in (("alone", 0), ("during", 5_000)):
        stopping = asyncio.Event()
        storing = asyncio.create_task(store_live(pool, stopping, load, first))
        done = None
        if name == "alone":
            await asyncio.sleep(8)
        else:
            done = await export(pool, load.wanted(ExportFormat.CSV))
        stopping.set()
        took = sorted(await storing)
        found[f"live_p50_ms_{name}"] = round(statistics.median(took), 2)
        found[f"live_p99_ms_{name}"] = round(took[int(len(took) * 0.99)], 2)
        if done is not None:
            found["manual_export_rows_per_s_beside_live"] = round(rate(done))
    return found


def peak_megabytes(pid: int) -> float:
    """Return the most memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


@dataclass(frozen=True)
class WorkerOn:
    """A migrated database, and the worker that may be started on it."""

    url: str
    worker: ChildProcess

    def start(self) -> None:
        """Start the worker; it ends with the database, at the latest."""
        self.worker.start()


@asynccontextmanager
async def worker_on() -> AsyncIterator[WorkerOn]:
    """Give a database in a temporary folder; everything ends and is removed afterwards."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="meterpost-bench-")))
        postgres = PostgresServer(data_folder=folder / "postgres")
        cleanup.callback(postgres.destroy)
        postgres.start()
        await asyncio.to_thread(upgrade, postgres.url())
        worker = ChildProcess(
            name="exports",
            command=[sys.executable, "-m", "services.exports"],
            log_file=folder / "exports.log",
            pid_file=folder / "exports.pid",
            working_folder=REPOSITORY,
            environment={
                **os.environ,
                "METERPOST_DATABASE_URL": postgres.url(),
                "METERPOST_EXPORT_STORE_URL": (folder / "store").as_uri(),
            },
        )
        cleanup.callback(lambda: worker.stop(5))
        yield WorkerOn(postgres.url(), worker)


@asynccontextmanager
async def running(load: Load, console: Console) -> AsyncIterator[tuple[Pool, ChildProcess]]:
    """Give a database with the load, and the worker on it."""
    async with worker_on() as on:
        console.print(f"storing {(load.meters + load.others) * load.hours * 60 // load.cadence_minutes:,} readings")
        await fill(on.url, load)
        on.start()
        pool = await connect_pool(on.url, max_size=4, statement_timeout_seconds=300)
        try:
            yield pool, on.worker
        finally:
            pool.terminate()


async def measure_csv(load: Load, console: Console) -> dict[str, float]:
    """Measure CSV against the limit alone, the limit before and after it."""
    async with running(load, console) as (pool, _worker):
        limits = [await copy_out(pool, load) for _ in range(2)]
        runs = [rate(await export(pool, load.wanted(ExportFormat.CSV))) for _ in range(4)]
        limits += [await copy_out(pool, load) for _ in range(2)]
    return {
        "manual_export_rows_per_s": round(statistics.median(runs)),
        "copy_out_rows_per_s": round(statistics.median(ready for ready, _plain in limits)),
    }


async def measure(load: Load, console: Console) -> dict[str, float]:
    """Run the whole bench."""
    async with running(load, console) as (pool, worker):
        limits = [await copy_out(pool, load) for _ in range(3)]
        found: dict[str, float] = {}
        done = await export(pool, load.wanted(ExportFormat.PARQUET))
        # What the libraries need stands; from here on the ranges of eight more exports go through.
        found["peak_mb_after_one"] = peak_megabytes(worker.pid or 0)
        for export_format in (ExportFormat.CSV, ExportFormat.JSON_LINES, ExportFormat.PARQUET):
            runs = [await export(pool, load.wanted(export_format)) for _ in range(2)]
            done = runs[-1]
            found[f"{export_format.value}_rows_per_s"] = round(max(map(rate, runs)))
        found |= await live(pool, load)
        ready, plain = (statistics.median(column) for column in zip(*limits, strict=True))
        return {
            **found,
            "rows": done.row_count,
            "peak_mb": peak_megabytes(worker.pid or 0),
            "copy_plain_table_rows_per_s": round(plain),
            "manual_export_rows_per_s": found["csv_rows_per_s"],
            "copy_out_rows_per_s": round(ready),
            "ratio": round(found["csv_rows_per_s"] / ready, 2),
        }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.manual_export", description=__doc__)
    parser.add_argument("--meters", type=int, default=5_000)
    parser.add_argument("--others", type=int, default=0, help="meters of somebody else, with as many readings each")
    parser.add_argument("--hours", type=int, default=12)
    parser.add_argument("--cadence", type=int, default=5, choices=(1, 5), help="minutes of a reading")
    options = parser.parse_args()
    load = Load(options.meters, options.hours, options.cadence, options.others)
    result = asyncio.run(measure(load, Console(stderr=True)))
    table = Table(title="manual export", show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:,}")
    Console(stderr=True).print(table)
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
