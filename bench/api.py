"""`python -m bench.api`: how fast the HTTP API answers with many jobs and meters stored, one process, on this machine.

A real API process answers callers on loopback: the pages of the job list, a month of one meter's 15-minute windows, and
searches. Each kind is asked by one caller (how long an answer takes) and by several without a pause (how many a
second). Then all kinds come mixed, at a fixed pace, whether earlier ones are answered or not, as from callers who know
nothing of each other: the times of this mix are those that count. Times are milliseconds from when the request was due
to the end of the answer. At the end manual exports are measured against COPY out (`bench.manual_export`). The last line
printed is JSON.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import asyncpg
from rich.console import Console
from rich.table import Table

from bench.manual_export import Load as ExportLoad
from bench.manual_export import measure_csv
from services.api.access import SECRET_PREFIX, Grant, fingerprint, new_secret
from services.api.access_store import create_client
from services.local.ports import free_port
from services.local.postgres_server import PostgresServer
from services.local.processes import ChildProcess
from services.local.settings import REPOSITORY
from services.platform.clock import SystemClock
from services.platform.migrations import upgrade
from services.platform.postgres import connect_pool, transaction
from services.platform.secrets import new_key
from services.windowing.measurement_partitions import partition_of

T0 = datetime(2026, 10, 1, tzinfo=UTC)
RESOLUTION = 15
CALLERS = 8
MIXED_PER_SECOND = 25
SHARES = {"job list": 0.5, "a meter's month": 0.3, "job list by name": 0.1, "meter search": 0.1}
"""Of the mixed requests."""
STARTS_WITHIN_SECONDS = 30
MEASURED_METERS = 1_000
"""So many of the meters have windows in the month, so that each window of a meter is on a page of its own."""


@dataclass(frozen=True)
class Load:
    """What is stored."""

    jobs: int
    meters: int
    days: int


@dataclass(frozen=True)
class Result:
    """What one kind of request took."""

    name: str
    p50_ms: float
    p99_ms: float
    most_ms: float
    per_second: float


async def fill(url: str, load: Load) -> None:
    """Put one organization's sites, meters, jobs and a month of windows into the tables."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"""
        UPDATE catalog_revision SET revision = 1;
        INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Bench', 1);
        INSERT INTO site (site_id, organization_id, revision) SELECT s, 1, 1 FROM generate_series(1, 500) s;
        INSERT INTO site_description SELECT site_id, '-infinity', 1, 'Site ' || site_id, 'Europe/Berlin' FROM site;
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, serial_number, revision)
            SELECT n, 1, 'Electricity', 'electricity', 'SN-' || n, 1 FROM generate_series(1, {load.meters}) n;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse)
            SELECT n, '-infinity', 1, 'Meter ' || n, n % 500 + 1, 'kWh', 0.001 FROM generate_series(1, {load.meters}) n;
        INSERT INTO export_job (job_id, organization_id, starts_at)
            SELECT n, 1, '2026-10-01Z' FROM generate_series(1, {load.jobs}) n;
        INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, frequency_minutes,
                                        resolution_minutes, transport, transport_settings)
            SELECT 1, n, v, '2026-10-01Z', 'Job ' || n, 'meters_measurements', 60, 15, 'https',
                   jsonb_build_object('url', 'https://receiver-' || n || '.example.org/in')
            FROM generate_series(1, {load.jobs}) n, generate_series(1, 2) v;
        INSERT INTO export_job_progress (organization_id, job_id, transport, destination, next_slot_start,
                                         next_slot_end, next_resolution_minutes, seen_version)
            SELECT 1, n, 'https', 'receiver-' || n || '.example.org:443', '2026-11-01Z', '2026-11-01T01:00Z', 15, 2
            FROM generate_series(1, {load.jobs}) n;
        INSERT INTO window_closed VALUES (15, '2026-10-01Z', '2026-11-01Z');
        """  # noqa: S608 - numbers of ours
    )
    for day in range(load.days):
        start = T0 + timedelta(days=day)
        part = partition_of(RESOLUTION, start)
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {part.name} PARTITION OF {part.parent} "
            f"FOR VALUES FROM ('{part.start.isoformat()}') TO ('{part.end.isoformat()}')"
        )
        await connection.execute(
            """
            INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                     intervals_expected, pulses, energy_wh, volume)
            SELECT w, n, 1, 15, 15, 15, n, n * 1.005, NULL
            FROM generate_series($1::timestamptz, $1::timestamptz + interval '1425 minutes', interval '15 minutes') w,
                 generate_series(1, $2::int) n
            """,
            *(start, MEASURED_METERS),
        )
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def new_token(session: aiohttp.ClientSession, database_url: str, url: str) -> str:
    """Make a client in the database and exchange its secret for a token, once the process answers."""
    pool = await connect_pool(database_url, max_size=1)
    secret = new_secret(SECRET_PREFIX)
    async with transaction(pool) as connection:
        now = SystemClock().now()
        await create_client(connection, "mp-bench", "Bench", Grant(1, "viewer", False, None), fingerprint(secret), now)
    await pool.close()
    until = time.monotonic() + STARTS_WITHIN_SECONDS
    while True:
        try:
            headers = {"Authorization": aiohttp.encode_basic_auth("mp-bench", secret)}
            form = {"grant_type": "client_credentials"}
            async with session.post(f"{url}/oauth/token", data=form, headers=headers) as response:
                if response.status == 200:
                    return str((await response.json())["access_token"])
        except aiohttp.ClientError:
            pass
        if time.monotonic() > until:
            raise TimeoutError("the API did not start")
        await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Kind:
    """One kind of request."""

    name: str
    path: Callable[[], str]
    must_hold: bytes
    requests: int

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """Ask once. Raises RuntimeError for an answer that is not what was asked for."""
        async with session.get(self.path()) as response:
            body = await response.read()
        if response.status != 200 or self.must_hold not in body:
            raise RuntimeError(f"{self.name}: {response.status} {body[:300]!r}")


async def measure(session: aiohttp.ClientSession, kind: Kind) -> Result:
    """Ask one at a time, then several at once."""

    async def ask() -> float:
        began = time.perf_counter()
        await kind.ask(session)
        return (time.perf_counter() - began) * 1000

    for _warm in range(20):
        await ask()
    times = [await ask() for _number in range(kind.requests)]

    async def caller() -> None:
        for _number in range(kind.requests // CALLERS):
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _number in range(CALLERS)))
    per_second = kind.requests // CALLERS * CALLERS / (time.perf_counter() - began)
    return result(kind.name, times, per_second)


def result(name: str, times: list[float], per_second: float) -> Result:
    """Return what these times come to."""
    ordered = sorted(times)
    return Result(name, ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99) - 1], ordered[-1], per_second)


async def mixed(session: aiohttp.ClientSession, kinds: Sequence[Kind], requests: int) -> list[Result]:
    """Ask all kinds at a fixed pace; a request that is due waits for no other."""
    chosen = random.Random(2)  # noqa: S311 - the same at each run
    times: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    began = time.perf_counter()

    async def ask(kind: Kind, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await kind.ask(session)
        times[kind.name].append((time.perf_counter() - due) * 1000)

    weights = [SHARES[kind.name] for kind in kinds]
    async with asyncio.TaskGroup() as asking:
        for number, kind in enumerate(chosen.choices(kinds, weights, k=requests)):
            asking.create_task(ask(kind, began + number / MIXED_PER_SECOND))
    return [result(kind.name, times[kind.name], MIXED_PER_SECOND * SHARES[kind.name]) for kind in kinds]


async def run(database_url: str, folder: Path, load: Load, requests: int) -> tuple[list[Result], list[Result]]:
    """Fill the tables, start the API and measure each kind for itself, then the mix."""
    await fill(database_url, load)
    keys = folder / "keys"
    keys.write_text(new_key("bench") + "\n", encoding="ascii")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = ChildProcess(
        name="api",
        command=[sys.executable, "-m", "services.api"],
        log_file=folder / "api.log",
        pid_file=folder / "api.pid",
        working_folder=REPOSITORY,
        environment={
            **os.environ,
            "METERPOST_DATABASE_URL": database_url,
            "METERPOST_SECRET_KEYS_FILE": str(keys),
            "METERPOST_API_PORT": str(port),
            "METERPOST_HEALTH_PORT": str(free_port()),
            "METERPOST_RATE_PER_SECOND": "100000",
            "METERPOST_RATE_BURST": "100000",
        },
    )
    process.start()
    chosen = random.Random(1)  # noqa: S311 - the same at each run
    until = T0 + timedelta(days=load.days)
    month = f"from={T0:%Y-%m-%dT%H:%M:%SZ}&until={until:%Y-%m-%dT%H:%M:%SZ}&resolution=15&limit=10000"
    rows = 96 * load.days
    try:
        async with aiohttp.ClientSession(url) as session:
            session.headers["Authorization"] = f"Bearer {await new_token(session, database_url, url)}"
            first = json.loads(await (await session.get("/v1/jobs?limit=100")).read())
            pages = [""]
            while len(pages) < 20 and first["next_cursor"]:
                pages.append(f"&cursor={first['next_cursor']}")
                first = json.loads(await (await session.get(f"/v1/jobs?limit=100{pages[-1]}")).read())
            meter = f"/v1/measurements?{month}&meter_id="
            found = json.loads(await (await session.get(f"{meter}1")).read())["measurements"]
            if len(found) != rows:
                raise RuntimeError(f"a month of a meter has {len(found)} windows, {rows} are stored")
            kinds = [
                Kind("job list", lambda: f"/v1/jobs?limit=100{chosen.choice(pages)}", b'"jobs"', requests),
                Kind(
                    *("job list by name", lambda: f"/v1/jobs?limit=100&sort=name&search=job%20{chosen.randint(1, 9)}"),
                    *(b'"jobs"', requests // 4),
                ),
                Kind(
                    *("a meter's month", lambda: f"{meter}{chosen.randint(1, MEASURED_METERS)}"),
                    *(b'"window_start"', requests // 2),
                ),
                Kind(
                    *("meter search", lambda: f"/v1/meters?search=meter%20{chosen.randint(1, load.meters)}"),
                    *(b'"meters"', requests // 4),
                ),
            ]
            return [await measure(session, kind) for kind in kinds], await mixed(session, kinds, requests)
    finally:
        process.stop(10)


def main() -> None:
    """Measure, show a table, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--meters", type=int, default=50_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--export-hours", type=int, default=12, help="the range of the manual export")
    given = parser.parse_args()
    load = Load(given.jobs, max(given.meters, MEASURED_METERS), given.days)
    console = Console(stderr=True)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="meterpost-bench-")))
        postgres = PostgresServer(data_folder=folder / "postgres")
        cleanup.callback(postgres.destroy)
        postgres.start()
        upgrade(postgres.url())
        alone, mix = asyncio.run(run(postgres.url(), folder, load, given.requests))
    console.print(f"{load.jobs:,} jobs, {load.meters:,} meters, {MEASURED_METERS * 96 * load.days:,} windows stored")
    show(console, f"one caller; requests/s: {CALLERS} callers", alone)
    show(console, f"mixed, {MIXED_PER_SECOND} requests/s", mix)
    exports = asyncio.run(measure_csv(ExportLoad(5_000, given.export_hours, 5, 0), console))
    named = {one.name: one for one in mix}
    figures = {
        "job_list_p99_ms": named["job list"].p99_ms,
        "meter_month_p99_ms": named["a meter's month"].p99_ms,
        "job_search_p99_ms": named["job list by name"].p99_ms,
        "meter_search_p99_ms": named["meter search"].p99_ms,
        "mixed_requests_per_second": MIXED_PER_SECOND,
        "job_list_per_second": alone[0].per_second,
        "meter_month_per_second": alone[2].per_second,
        **exports,
    }
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))  # noqa: T201 - the bench's answer


def show(console: Console, title: str, results: list[Result]) -> None:
    """Print a table."""
    table = Table("request", "p50 ms", "p99 ms", "max ms", "requests/s", title=title)
    for one in results:
        table.add_row(one.name, *(f"{value:,.1f}" for value in (one.p50_ms, one.p99_ms, one.most_ms, one.per_second)))
    console.print(table)


if __name__ == "__main__":
    main()
