"""How complete a run is, counted from its rows: as the database counts it, whatever changes within the slot."""

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg
import pytest

from services.core.csv_records import csv_format
from services.core.manifest import Completeness
from services.core.schedule import Slot
from services.delivery.catalog_parts import CatalogStore
from services.delivery.interval_counts import IntervalCounts, Intervals
from services.delivery.model import JobKey, Run, Version
from services.delivery.row_store import RowStore
from services.delivery.sending import Freezer
from services.platform.postgres import Pool, connect_pool
from tests.support.exports import Exports, at
from tests.support.formats import AnyFormat

CSV = csv_format("\n", defuse=True)
COUNT = """
SELECT coalesce(sum(intervals_present), 0)::bigint, coalesce(sum(intervals_expected), 0)::bigint,
       count(*) FILTER (WHERE windows_present = 0)
FROM completeness($1, $2, $3, $4, $5, $6)
"""


def run_of(
    start: datetime, end: datetime, sites: Sequence[int] | None, *, minutes: int = 15, revision: int = 1
) -> tuple[Run, Version]:
    chosen = None if sites is None else tuple(sites)
    version = Version(1, start, "Job", "meters_measurements", 60, minutes, chosen, "sftp", {})
    return Run(JobKey(1, 1), Slot(start, end), 1, revision, False, 0, start), version


async def count(pool: Pool, counts: IntervalCounts, run: Run, version: Version) -> Intervals:
    """Count as a run is counted: while it is frozen."""
    tally = await counts.tally(run, version)
    await Freezer(RowStore(pool), CatalogStore(pool), AnyFormat(CSV), at_once=1).parts(run, version, tally)
    return tally.result()


async def report(exports: Exports) -> None:
    """Say that each meter is read by an input of one device."""
    await exports.execute("INSERT INTO device VALUES ('LG-1', 1, 'logger', 1)")
    await exports.execute("INSERT INTO input_attachment SELECT 'LG-1', meter_id, '-infinity', 1, meter_id FROM meter")


async def test_present_expected_and_silent_by_the_sites_of_a_job(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=4, sites=2)
    await report(exports)
    await exports.close_windows(15, at(8), at(9), meters=[1, 2, 3])
    counts = IntervalCounts(pool)
    # Four windows of a meter, of 15 minutes each; the meter without rows is at the first site, with the even ones.
    for sites, expected in (
        (None, Intervals(180, 240, 1)),
        ([1], Intervals(60, 120, 1)),
        ([2], Intervals(120, 120, 0)),
    ):
        assert await count(pool, counts, *run_of(at(8), at(9), sites)) == expected


async def test_of_meters_that_report_less_often_nothing_is_counted(exports: Exports, pool: Pool) -> None:
    """Of five meters two report every hour, the last from 09:00 on only; all have rows until 10:00 but the first."""
    await exports.seed(meters=5, sites=2)
    await report(exports)
    await exports.execute("UPDATE meter_configuration SET cadence_minutes = 60 WHERE meter_id IN (1, 2)")
    await exports.execute(
        "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
        "cadence_minutes) VALUES (5, $1, 1, 'M', 2, 'm3', 1, 30)",
        at(9),
    )
    await exports.close_windows(15, at(8), at(10), meters=[2, 3, 4, 5])
    # Rows of a meter of which nothing is expected, some of them partial, as they are where it sends more often.
    await exports.execute(
        "UPDATE measurement SET intervals_present = 0 WHERE meter_id = 2 AND window_start < $1", at(9)
    )
    counts, rows = IntervalCounts(pool), RowStore(pool)
    for start, end, sites, wanted, said in (
        (at(8), at(9), None, Intervals(180, 180, 0), (12, 12)),
        (at(9), at(10), None, Intervals(120, 120, 0), (8, 8)),
        (at(8), at(10), [2], Intervals(180, 180, 0), (12, 12)),
        (at(8), at(10), [1], Intervals(120, 120, 0), (8, 8)),
    ):
        run, version = run_of(start, end, sites)
        assert await count(pool, counts, run, version) == wanted
        found = await pool.fetchrow(COUNT, 1, 15, start, end, 1, sites)
        assert found is not None
        assert Intervals(*found) == wanted
        assert await rows.completeness(run, version) == Completeness(*said)
    run, version = run_of(at(10), at(11), None)
    assert await rows.completeness(run, version) is None, "no rows"


@pytest.mark.parametrize("seed", range(8))
async def test_it_is_what_the_database_counts(exports: Exports, pool: Pool, seed: int) -> None:
    """Meters come and go, are moved, attached elsewhere and change their cadence; rows are missing or partial."""
    chance = random.Random(seed)
    minutes = chance.choice([1, 5, 15, 60])
    await exports.seed(meters=25, sites=3)
    await report(exports)

    def moment() -> datetime:
        return at(7, 30) + timedelta(minutes=chance.randrange(180))

    for meter in range(1, 26):
        for revision in range(1, chance.randrange(4)):
            await exports.execute(
                "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, "
                "units_per_pulse, cadence_minutes) VALUES ($1, $2, $3, 'M', $4, 'm3', 1, $5)",
                meter, moment(), revision, chance.randint(1, 3), chance.choice([1, 5, 15, 30, 60]),
            )  # fmt: skip
            await exports.execute(
                "INSERT INTO input_attachment VALUES ('LG-1', $1, $2, $3, $4)",
                meter, moment(), revision, chance.choice([None, meter]),
            )  # fmt: skip
    await exports.close_windows(minutes, at(8), at(10))
    await exports.execute(
        "UPDATE measurement SET intervals_expected = $1::int, intervals_present = CASE WHEN meter_id % 2 = 0 "
        "THEN $1::int ELSE (hashint4(meter_id + extract(minute FROM window_start)::int) & 7) * $1::int / 7 END",
        minutes,
    )
    await exports.execute(
        "DELETE FROM measurement WHERE meter_id % 6 = 1 "
        "OR hashint4(31 * meter_id + extract(minute FROM window_start)::int + $1::int) % 5 = 0",
        seed,
    )
    counts = IntervalCounts(pool)
    kinds = set()
    for start, end in ((at(8), at(9)), (at(9), at(10)), (at(8), at(10))):
        for sites in (None, [1], [2, 3], []):
            for revision in (1, 2):
                run, version = run_of(start, end, sites, minutes=minutes, revision=revision)
                found = await count(pool, counts, run, version)
                wanted = await pool.fetchrow(COUNT, 1, minutes, start, end, revision, sites)
                assert wanted is not None
                assert found == Intervals(*wanted)
                kinds.add(0 < found.present < found.expected)
    assert True in kinds


async def test_the_catalog_is_asked_once_a_day_and_change_of_the_organizations(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=2)
    await report(exports)
    await exports.close_windows(15, at(8), at(10))
    counts = IntervalCounts(pool)
    runs = [run_of(at(hour), at(hour + 1), None) for hour in (8, 9)]
    first = await asyncio.gather(*(count(pool, counts, *run) for run in runs * 3))
    await exports.execute("DELETE FROM input_attachment")
    assert [await count(pool, counts, *run) for run in runs] * 3 == first == [Intervals(120, 120, 0)] * 6
    await exports.execute("INSERT INTO input_attachment VALUES ('LG-1', 1, '-infinity', 2, NULL)")
    assert await count(pool, counts, *run_of(at(8), at(9), None, revision=2)) == Intervals(0, 0, 0)
    assert await count(pool, IntervalCounts(pool), *runs[0]) == Intervals(0, 0, 0)


async def test_what_is_remembered_is_bounded(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=4)
    await report(exports)
    await exports.close_windows(15, at(8), at(9))
    counts = IntervalCounts(pool, most_meters=3)
    for _again in range(2):
        for sites, meters in ((None, 4), ([1], 2), ([2], 2)):
            wanted = Intervals(60 * meters, 60 * meters, 0)
            assert await count(pool, counts, *run_of(at(8), at(9), sites)) == wanted
    await exports.execute("DELETE FROM input_attachment")
    assert await count(pool, counts, *run_of(at(8), at(9), [2])) == Intervals(120, 120, 0), "the last one is kept"
    assert await count(pool, counts, *run_of(at(8), at(9), [1])) == Intervals(0, 0, 0), "the others were forgotten"


async def test_asking_that_failed_is_done_again(exports: Exports) -> None:
    await exports.seed(meters=1)
    await report(exports)
    pool = await connect_pool(exports.url, max_size=1)
    counts = IntervalCounts(pool)
    try:
        await exports.execute("ALTER FUNCTION expected_windows RENAME TO expected_elsewhere")
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await counts.tally(*run_of(at(8), at(9), None))
        await exports.execute("ALTER FUNCTION expected_elsewhere RENAME TO expected_windows")
        assert (await counts.tally(*run_of(at(8), at(9), None))).result() == Intervals(0, 60, 1)
    finally:
        pool.terminate()


@pytest.mark.parametrize("waiting", [1, 3])
async def test_who_gives_up_waiting_leaves_the_answer_to_the_others(exports: Exports, pool: Pool, waiting: int) -> None:
    await exports.seed(meters=1)
    await report(exports)
    counts = IntervalCounts(pool)
    impatient = [asyncio.ensure_future(counts.tally(*run_of(at(8), at(9), None))) for _ in range(waiting)]
    patient = asyncio.ensure_future(counts.tally(*run_of(at(8), at(9), None)))
    await asyncio.sleep(0)
    for one in impatient:
        one.cancel()
    assert (await patient).result() == Intervals(0, 60, 1)
