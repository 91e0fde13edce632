"""`python -m bench.manual_export_closing`: what closing feels of a large manual export that runs beside it.

One-minute readings of an hour of many meters lie in the real tables, as in `bench.close`, and 5-minute readings of the
days before of 250 others, as in `bench.manual_export_year`. The real store closes one 5-minute window after the other,
with a pause before each, as live: the first ones alone, the next ones while the real worker, a process of its own with
its usual settings, exports the days before, the last ones alone again. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import statistics
import time
from datetime import timedelta

from rich.console import Console

from bench.close import T0, TOPIC, Load
from bench.close import fill as fill_closing
from bench.manual_export import export, rate, worker_on
from bench.manual_export_year import DAY, ORGANIZATION_ID, Year
from bench.manual_export_year import fill as fill_year
from services.core.manual_export import WantedExport
from services.core.times import floor_to
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.postgres import Pool, connect_pool
from services.platform.settings import load as load_settings
from services.windowing.announcements import BucketKey
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore

RESOLUTION = 5
STEP = timedelta(minutes=RESOLUTION)
WINDOWS_EACH = 4
"""Before, during and after the export."""
PAUSE_SECONDS = 1.5
"""So long, and the export has forgotten that closing used the database."""


async def close(store: WindowStore, first: int) -> list[float]:
    """Close some windows; return how many seconds each took."""
    took = []
    for number in range(first, first + WINDOWS_EACH):
        await asyncio.sleep(PAUSE_SECONDS)
        end = T0 + (number + 1) * STEP
        started = time.perf_counter()
        reached = await store.advance(BucketKey(RESOLUTION, 0), end)
        took.append(time.perf_counter() - started)
        if reached != end:
            raise SystemExit(f"closed to {reached} instead of {end}")
    return took


async def close_beside(pool: Pool, year: Year, console: Console) -> dict[str, float]:
    """Close windows alone, beside an export, and alone again."""
    store = WindowStore(pool, load_settings(WindowingSettings), (TOPIC,))
    await store.open(dict.fromkeys(RESOLUTIONS_MINUTES, T0))
    alone = await close(store, 0)
    exporting = asyncio.create_task(export(pool, WantedExport(year.start, year.end, RESOLUTION), ORGANIZATION_ID))
    during = await close(store, WINDOWS_EACH)
    if exporting.done():
        raise SystemExit("the export was over before closing was measured: give more days")
    done = await exporting
    alone += await close(store, 2 * WINDOWS_EACH)
    for name, took in (("alone", alone), ("beside", during)):
        console.print(f"{name}: {' '.join(f'{one:.3f}' for one in took)}")
    return {
        "close_5m_s_alone": round(statistics.median(alone), 3),
        "close_5m_s_beside": round(statistics.median(during), 3),
        "slowest_s_alone": round(max(alone), 3),
        "slowest_s_beside": round(max(during), 3),
        "rows": done.row_count,
        "rows_per_s_partly_beside_closing": round(rate(done)),
    }


async def measure(meters: int, days: int, console: Console) -> dict[str, float]:
    """Run the whole bench."""
    year = Year(floor_to(T0, DAY) - (days + 1) * DAY, days)
    load = Load(meters, 3 * WINDOWS_EACH * RESOLUTION, 0)
    async with worker_on() as on:
        console.print(f"storing {meters * load.minutes:,} readings that are closed")
        await fill_closing(on.url, load)
        console.print(f"storing {days * 288 * 250:,} readings that are exported")
        await fill_year(on.url, year)
        on.start()
        pool = await connect_pool(on.url, max_size=6, statement_timeout_seconds=300)
        try:
            return {**await close_beside(pool, year, console), "meters": meters}
        finally:
            pool.terminate()


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.manual_export_closing", description=__doc__)
    parser.add_argument("--meters", type=int, default=50_000, help="whose windows are closed")
    parser.add_argument("--days", type=int, default=60, help="of 250 other meters, that are exported")
    options = parser.parse_args()
    result = asyncio.run(measure(options.meters, options.days, Console(stderr=True)))
    print(json.dumps(result))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
