"""How complete a run is, counted once for all jobs that export the same windows."""

import asyncio
from datetime import datetime

import asyncpg
import pytest

from services.core.schedule import Slot
from services.delivery.interval_counts import IntervalCounts, Intervals
from services.delivery.model import JobKey, Run, Version
from services.platform.postgres import Pool, connect_pool
from tests.support.exports import Exports, at


def run_of(job_id: int, start: datetime, end: datetime, sites: tuple[int, ...] | None) -> tuple[Run, Version]:
    version = Version(1, start, "Job", "meters_measurements", 60, 15, sites, "sftp", {})
    return Run(JobKey(1, job_id), Slot(start, end), 1, 1, False, 0, start), version


async def report(exports: Exports) -> None:
    """Say that each meter is read by an input of one device."""
    await exports.execute("INSERT INTO device VALUES ('LG-1', 1, 'logger', 1)")
    await exports.execute("INSERT INTO input_attachment SELECT 'LG-1', meter_id, '-infinity', 1, meter_id FROM meter")


async def test_jobs_with_the_same_windows_share_a_count(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=4, sites=2)
    await report(exports)
    await exports.close_windows(15, at(8), at(9), meters=[1, 2, 3])
    counts = IntervalCounts(pool)
    wanted = [run_of(job, at(8), at(9), sites) for job in (1, 2, 3) for sites in (None, (1,), (2,))]
    found = await asyncio.gather(*(counts.of(run, version) for run, version in wanted))
    # Four windows of a meter; each expects 15 intervals and has one.
    everything, first, second = Intervals(12, 240, 1), Intervals(4, 120, 1), Intervals(8, 120, 0)
    assert found == [everything, first, second] * 3
    # Meters of the first site are the even ones; a count that was made is not made again.
    await exports.execute("DELETE FROM measurement")
    assert await counts.of(*run_of(4, at(8), at(9), None)) == everything
    assert await IntervalCounts(pool).of(*run_of(4, at(8), at(9), None)) == Intervals(0, 240, 4)


async def test_a_count_that_failed_is_made_again(exports: Exports) -> None:
    await exports.seed(meters=1)
    await report(exports)
    pool = await connect_pool(exports.url, max_size=1)
    counts = IntervalCounts(pool)
    try:
        await exports.execute("ALTER FUNCTION completeness RENAME TO completeness_elsewhere")
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await counts.of(*run_of(1, at(8), at(9), None))
        await exports.execute("ALTER FUNCTION completeness_elsewhere RENAME TO completeness")
        assert await counts.of(*run_of(1, at(8), at(9), None)) == Intervals(0, 60, 1)
    finally:
        pool.terminate()


@pytest.mark.parametrize("waiting", [1, 3])
async def test_who_gives_up_waiting_leaves_the_count_to_the_others(exports: Exports, pool: Pool, waiting: int) -> None:
    await exports.seed(meters=1)
    await report(exports)
    counts = IntervalCounts(pool)
    impatient = [asyncio.ensure_future(counts.of(*run_of(1, at(8), at(9), None))) for _ in range(waiting)]
    patient = asyncio.ensure_future(counts.of(*run_of(2, at(8), at(9), None)))
    await asyncio.sleep(0)
    for one in impatient:
        one.cancel()
    assert await patient == Intervals(0, 60, 1)
