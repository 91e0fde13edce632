"""`python -m bench.manual_export_year`: a year of 5-minute data of 250 sites, exported beside live traffic.

The readings of a year lie in the real tables, the real worker exports a tenth of the range first and then all of it:
its memory must not follow the range. Meanwhile loggers publish at a steady pace and the real service stores, as in
`bench.ingest_live`: how long after its append a reading is stored, without the export and beside it. The last line
printed is JSON.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import asyncpg
from rich.console import Console

from bench.ingest_live import Latencies, look, publish, uploads
from bench.ingest_load import Load as LiveLoad
from bench.ingest_load import register
from bench.manual_export import export, peak_megabytes, rate
from bench.servers import servers
from services.core.manual_export import WantedExport
from services.core.times import floor_to
from services.platform.clock import SystemClock
from services.platform.kafka import Producer
from services.platform.kafka_admin import Admin
from services.platform.postgres import connect_pool
from services.platform.topics import load_topics

ORGANIZATION_ID = 2
FIRST_ID = 1_000_000
"""Of the sites and meters that are exported; the live ones are counted from 1."""
SITES = 250
LIVE_METERS = 2_000
WARM_UP_SECONDS = 10
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Year:
    """What is exported: one meter at each site, a reading every five minutes."""

    start: datetime
    days: int

    @property
    def end(self) -> datetime:
        """Where the readings end."""
        return self.start + self.days * DAY


async def fill(url: str, year: Year) -> None:
    """Put the sites, the meters and their readings into the tables."""
    connection = await asyncpg.connect(url, timeout=60)
    await connection.execute(
        f"""
        INSERT INTO organization (organization_id, name, revision) VALUES ({ORGANIZATION_ID}, 'Year', 1);
        INSERT INTO site (site_id, organization_id, revision)
            SELECT {FIRST_ID} + n, {ORGANIZATION_ID}, 1 FROM generate_series(1, {SITES}) n;
        INSERT INTO site_description
            SELECT {FIRST_ID} + n, '-infinity', 1, 'Site number ' || n, 'UTC' FROM generate_series(1, {SITES}) n;
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision)
            SELECT {FIRST_ID} + n, {ORGANIZATION_ID}, 'Electricity', 'electricity', 1
            FROM generate_series(1, {SITES}) n;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                         cadence_minutes)
            SELECT {FIRST_ID} + n, '-infinity', 1, 'Meter ' || n, {FIRST_ID} + n, 'kWh', 0.001, 5
            FROM generate_series(1, {SITES}) n;
        """  # noqa: S608 - numbers of ours
    )
    for number in range(year.days):
        day = year.start + number * DAY
        for table in ("reading", "reading_superseded"):
            await connection.execute(
                f"CREATE TABLE {table}_{day:%Y%m%d} PARTITION OF {table} "
                f"FOR VALUES FROM ('{day.isoformat()}') TO ('{(day + DAY).isoformat()}')"
            )
        await connection.execute(
            f"""
            INSERT INTO reading_{day:%Y%m%d} (measured_at, arrived_at, value, source_offset, meter_id, revision,
                                 source_partition, source_place, interval_minutes, source_topic, is_register)
            SELECT t, t + interval '6 minutes', (n * 7 + extract(epoch FROM t)::bigint / 300) % 997, n,
                   {FIRST_ID} + n, 0, 0, 0, 5, 1, false
            FROM generate_series($1::timestamptz, $1::timestamptz + interval '1435 minutes', interval '5 minutes') t,
                 generate_series(1, {SITES}) n
            """,  # noqa: S608 - numbers of ours
            day,
        )
    await connection.execute("VACUUM (ANALYZE) reading")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def live(
    producer: Producer, waiting: Iterator[tuple[str, bytes]], url: str, per_second: float, seconds: float
) -> tuple[float, float]:
    """Publish; return how many milliseconds after their append half, and 99 of 100, of the records were stored."""
    found, published = Latencies(), asyncio.Event()
    looking = asyncio.create_task(look(url, found, published))
    await publish(producer, waiting, per_second, seconds, found)
    published.set()
    await looking
    cuts = quantiles(found.milliseconds, n=100)
    return round(cuts[49], 1), round(cuts[98], 1)


async def measure(days: int, readings_per_s: int, seconds: int, console: Console) -> dict[str, float]:
    """Run the whole bench."""
    now = SystemClock().now()
    year = Year(floor_to(now, DAY).astimezone(UTC) - (days + 3) * DAY, days)
    load = LiveLoad(meters=LIVE_METERS, minutes=1, per_record=20, correction_share=0, partitions=8)
    async with servers() as on:
        await register(on.database_url, load)
        console.print(f"storing {days * 288 * SITES:,} readings")
        await fill(on.database_url, year)
        admin = Admin(on.kafka)
        await admin.start()
        await admin.declare(load_topics())
        await admin.stop()
        on.service("services.ingest")
        store = (on.folder / "store").as_uri()
        worker = on.service("services.exports", METERPOST_EXPORT_STORE_URL=store)
        pool = await connect_pool(on.database_url, max_size=2)
        console.print("exporting a tenth")
        tenth = await export(pool, WantedExport(year.start, year.start + days / 10 * DAY, 5), ORGANIZATION_ID)
        tenth_megabytes = peak_megabytes(worker.pid or 0)
        producer = Producer(on.kafka, client="bench")
        await producer.start()
        waiting = uploads(load, floor_to(now, MINUTE) - DAY)
        pace = readings_per_s / load.per_record
        await publish(producer, waiting, pace, WARM_UP_SECONDS, Latencies())
        console.print("live alone")
        alone = await live(producer, waiting, on.database_url, pace, seconds)
        console.print("live, and all of the year")
        began = time.monotonic()
        exporting = asyncio.create_task(export(pool, WantedExport(year.start, year.end, 5), ORGANIZATION_ID))
        during = await live(producer, waiting, on.database_url, pace, seconds)
        if exporting.done():
            raise SystemExit("the export was over before live traffic was measured: give more days, or fewer seconds")
        console.print(f"live traffic ends after {time.monotonic() - began:.0f} s; the export goes on")
        done = await exporting
        await producer.stop()
        pool.terminate()
        return {
            "rows": done.row_count,
            "file_mb": round((done.byte_count or 0) / 1e6),
            "rows_per_s_of_a_tenth": round(rate(tenth)),
            "rows_per_s_partly_beside_live": round(rate(done)),
            "peak_mb_after_a_tenth": tenth_megabytes,
            "peak_mb": peak_megabytes(worker.pid or 0),
            "live_readings_per_s": readings_per_s,
            "append_to_commit_p50_ms_alone": alone[0],
            "append_to_commit_p99_ms_alone": alone[1],
            "append_to_commit_p50_ms_beside": during[0],
            "append_to_commit_p99_ms_beside": during[1],
        }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.manual_export_year", description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--readings-per-s", type=int, default=5_000, help="of live traffic")
    parser.add_argument("--seconds", type=int, default=30, help="of live traffic, without and with the export")
    options = parser.parse_args()
    result = asyncio.run(measure(options.days, options.readings_per_s, options.seconds, Console(stderr=True)))
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
