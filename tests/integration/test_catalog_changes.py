"""What is remembered of an organization's catalog outlives the changes of all others, and never its own."""

import random
from datetime import timedelta
from typing import Any

import pytest

from services.core.csv_records import csv_format
from services.core.schedule import Slot
from services.delivery.catalog_changes import CatalogChanges
from services.delivery.interval_counts import IntervalCounts
from services.delivery.model import JobKey, RowRange, Run, Version
from services.delivery.name_sheets import NameSheets
from services.delivery.row_store import SMALLEST_METER_ID, RowStore
from services.platform.postgres import Connection, Pool
from tests.support.exports import Exports, at

CSV = csv_format("\n", defuse=True)
OTHER = 2_000
VERSION = Version(1, at(8), "Job", "meters_measurements", 60, 15, None, "sftp", {})


def run_at(revision: int, organization_id: int = 1) -> Run:
    return Run(JobKey(organization_id, 1), Slot(at(8), at(9)), 1, revision, False, 0, at(8))


class CountingSheets(NameSheets):
    asked = 0

    async def _fill(self, connection: Connection, *arguments: Any) -> Any:
        self.asked += 1
        return await super()._fill(connection, *arguments)


async def rendered(store: RowStore, run: Run) -> bytes:
    block = await store.block(run, VERSION, CSV, RowRange(at(8), SMALLEST_METER_ID, 1_000))
    return CSV.assemble_block(block, 0, block.row_count)


async def two_organizations(exports: Exports) -> None:
    """Give two organizations meters with rows, sites and devices; the second's only meter is 2000."""
    await exports.seed(meters=6, sites=2)
    await exports.add_organization(2)
    await exports.attach()
    await exports.execute("INSERT INTO device VALUES ('BR-2', 2, 'bridge', 1)")
    await exports.execute("INSERT INTO bridge_attachment VALUES ('BR-2', 2000, '-infinity', 1, true)")
    await exports.close_windows(15, at(8), at(9))


# One of each kind that changes what rows are named or expected by: of a meter or site, or of a device of its.
CHANGES = {
    "meter": "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
    "cadence_minutes) SELECT meter_id, $3, $2, 'Meter in ' || $2, site_id, unit, 1, ($2 % 2) * 4 + 1 "
    "FROM meter_configuration WHERE meter_id = $1 AND revision = 1",
    "site": "INSERT INTO site_description SELECT site_id, $3, $2, 'Site in ' || $2, 'UTC' FROM meter_configuration "
    "WHERE meter_id = $1 AND revision = 1",
    "bridge": "INSERT INTO bridge_attachment SELECT CASE WHEN $1 < 2000 THEN 'BR-000001' ELSE 'BR-2' END, $1, $3, $2, "
    "$2 % 2 = 0",
    "input": "INSERT INTO input_attachment SELECT 'LG-000000', 1, $3, $2, CASE WHEN $2 % 2 = 0 THEN $1 END "
    "WHERE $1 < 2000",
}


async def change(exports: Exports, kind: str, meter_id: int, revision: int, hour: float = 0) -> None:
    query = CHANGES[kind].replace("$2", f"{revision}::int").replace("$1", f"{meter_id}::int")
    await exports.execute(query.replace("$3", f"'{(at(0) + timedelta(hours=hour)).isoformat()}'::timestamptz"))
    await exports.execute("UPDATE catalog_revision SET revision = $1", revision)


async def test_names_are_asked_for_once_until_the_organizations_own_catalog_changes(
    exports: Exports, pool: Pool
) -> None:
    await two_organizations(exports)
    sheets = CountingSheets()
    store = RowStore(pool, sheets)
    first = await rendered(store, run_at(1))
    for revision, kind in enumerate(("meter", "site", "bridge"), start=2):
        await change(exports, kind, OTHER, revision)
        assert await rendered(store, run_at(revision)) == first
    assert sheets.asked == 1
    await change(exports, "meter", 3, 5)
    assert b"Meter in 5" in await rendered(store, run_at(5))
    await change(exports, "site", OTHER, 6)
    assert b"Meter in 5" in await rendered(store, run_at(6))
    assert sheets.asked == 2
    # A run that was planned before is named as it was then.
    assert await rendered(store, run_at(4)) == first
    assert await rendered(store, run_at(1)) == first


async def test_what_is_expected_is_asked_for_once_until_the_organizations_own_catalog_changes(
    exports: Exports, pool: Pool
) -> None:
    await two_organizations(exports)
    counts = IntervalCounts(pool)
    first = (await counts.tally(run_at(1), VERSION)).result()
    # Were it asked again, it would find nothing.
    await exports.execute("ALTER TABLE bridge_attachment RENAME TO away")
    await exports.execute("CREATE VIEW bridge_attachment AS SELECT * FROM away WHERE revision > 1")
    await exports.execute("INSERT INTO away VALUES ('BR-2', 2000, '2026-11-20Z', 2, true)")
    assert (await counts.tally(run_at(2), VERSION)).result() == first
    await exports.execute("INSERT INTO away VALUES ('BR-000001', 2, '2026-11-21Z', 3, true)")
    assert (await counts.tally(run_at(3), VERSION)).result() != first


@pytest.mark.parametrize("most", [3, 1_000])
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_changes_rows_are_those_of_a_store_that_remembers_nothing(
    exports: Exports, pool: Pool, seed: int, most: int
) -> None:
    chance = random.Random(seed)
    await two_organizations(exports)
    changes = CatalogChanges(pool, most)
    store, counts = RowStore(pool, changes=changes), IntervalCounts(pool, changes=changes)
    begun = chance.randint(1, 4)
    for revision in range(2, 22):
        meter_id = chance.choice([1, 2, 3, 4, 5, 6, OTHER, OTHER])
        await change(exports, chance.choice(list(CHANGES)), meter_id, revision, chance.uniform(7.5, 9))
        if revision < begun:
            continue
        for asked in {revision, chance.randint(1, revision)}:
            run = run_at(asked, chance.choice([1, 2]))
            assert await rendered(store, run) == await rendered(RowStore(pool), run)
            alone = await IntervalCounts(pool).tally(run, VERSION)
            assert (await counts.tally(run, VERSION)).result() == alone.result()
