"""`python -m bench.ingest_growth`: what a reading costs with more meters, fuller tables, more processes.

Each line is a run of `bench.ingest` on servers of its own. `cost` is the time a reading takes, as a multiple of the
first line's, both by the limit measured in the same run: the machine's own ups and downs are taken out. The last line
printed is JSON.
"""

import argparse
import asyncio
import json
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from bench.ingest import add_options, load_of, measure
from bench.ingest_load import Load


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    load: Load


def cases(base: Load) -> list[Case]:
    """Return the loads to compare; each publishes about as many readings as the base."""

    def of_meters(meters: int) -> Load:
        # Several minutes at least: the first of each meter is not measured.
        return replace(base, meters=meters, minutes=max(base.readings // meters, 8))

    return [
        Case(f"{base.meters:,} meters", base),
        Case("5,000 meters", of_meters(5_000)),
        Case("500,000 meters", of_meters(500_000)),
        Case("10 M readings stored before", replace(base, stored_before=10_000_000)),
        Case("50 M readings stored before", replace(base, stored_before=50_000_000)),
        Case("2 processes", replace(base, processes=2)),
        Case("4 processes", replace(base, processes=4)),
    ]


def main() -> None:
    """Measure every case, print a table and JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest_growth", description=__doc__)
    add_options(parser)
    parser.set_defaults(minutes=60)
    console = Console(stderr=True)
    table = Table("load", "readings/s", "COPY limit, rows/s", "ratio", "cost", "peak MB", title="ingest, growth")
    results: list[dict[str, str | float]] = []
    base_ratio = 0.0
    for case in cases(load_of(parser.parse_args())):
        console.print(f"[bold]{case.name}")
        found = asyncio.run(measure(case.load, console))
        base_ratio = base_ratio or found["ratio"]
        cost = base_ratio / found["ratio"]
        results.append({"load": case.name, **found, "cost": round(cost, 2)})
        speeds = f"{found['readings_per_s']:,}", f"{found['copy_limit_rows_per_s']:,}"
        table.add_row(case.name, *speeds, f"{found['ratio']}", f"{cost:.2f}", f"{found['peak_rss_mb']}")
    console.print(table)
    print(json.dumps(results))  # noqa: T201 - the bench's answer


if __name__ == "__main__":
    main()
