"""Runs whose slots do not lie on the grid of the frequency: what came late is told of the run that missed it."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.api.request_store import request_backfill, request_run_now
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.postgres import Pool
from services.windowing.store import WindowStore
from tests.integration.test_requests import asker, until_done, until_states, windows
from tests.support.closing import MINUTE, T0, begin, close_all, store_progress, store_versions, version
from tests.support.command import Meterpost
from tests.support.exports import Exports, at, delivering
from tests.support.receiver import ScriptedReceiver

HOURS = ("--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T12:00:00Z")


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


async def one_reading_late(pool: Pool, exports: Exports, url: str, *, until: datetime) -> WindowStore:
    """Close, up to about `until`, windows of a meter that reports every minute; what was measured at 10:32 is late."""
    await exports.seed(meters=1)
    versions = [version(1, T0 + minute * MINUTE, 5) for minute in range(120) if minute != 32]
    await store_versions(url, [*versions, version(1, T0 + 32 * MINUTE, 7, arrived_at=T0 + 150 * MINUTE)])
    store = await begin(pool, url, until)
    await close_more(store, url, until)
    return store


async def close_more(store: WindowStore, url: str, until: datetime) -> None:
    await store_progress(url, until, first_arrival=T0)
    await close_all(store, until)
    for resolution in RESOLUTIONS_MINUTES:
        await store.move_closed(resolution)


async def test_after_a_run_that_was_asked_for_now(
    exports: Exports,
    receiver: ScriptedReceiver,
    to: dict[str, Any],
    pool: Pool,
    database_url: str,
    meterpost: Meterpost,
) -> None:
    store = await one_reading_late(pool, exports, database_url, until=T0 + 25 * MINUTE)
    job_id = await exports.add_job(to, starts_at=at(10))
    async with delivering(exports.url):
        await until_states(exports, job_id, [])
        said = ""
        while not said.startswith("the run"):
            said = await until_done(pool, job_id, await request_run_now(pool, 1, job_id, asker()))
        await close_more(store, database_url, T0 + 130 * MINUTE)
        await until_states(exports, job_id, ["delivered"] * 3)
    assert windows(receiver) == ["10:00-10:15", "10:15-11:00", "11:00-12:00"]
    assert_told_of(meterpost, job_id, "20261120T101500Z", "20261120T100000Z")


async def test_after_a_backfill_that_ends_within_a_slot(
    exports: Exports,
    receiver: ScriptedReceiver,
    to: dict[str, Any],
    pool: Pool,
    database_url: str,
    meterpost: Meterpost,
) -> None:
    await one_reading_late(pool, exports, database_url, until=T0 + 130 * MINUTE)
    job_id = await exports.add_job(to, starts_at=at(11))
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        await until_done(pool, job_id, await request_backfill(pool, 1, job_id, at(10, 15), at(10, 45), asker()))
        await until_states(exports, job_id, ["delivered"] * 2)
    assert windows(receiver) == ["11:00-12:00", "10:15-10:45"]
    assert_told_of(meterpost, job_id, "20261120T101500Z", "20261120T110000Z")


def assert_told_of(meterpost: Meterpost, job_id: int, run: str, other: str) -> None:
    """Assert that every command tells of the run that missed the reading, and of no other."""
    missed = [f"job{job_id}-{run}"]
    listed = meterpost.json("late", "list", *HOURS, "--resolution", "15")["readings"]
    assert [(one["window_start"], one["runs"]) for one in listed] == [("2026-11-20T10:30:00Z", missed)]
    assert len(meterpost.json("late", "list", "--run", missed[0])["readings"]) == 1
    assert meterpost.json("late", "list", "--run", f"job{job_id}-{other}")["readings"] == []
    exported = meterpost("late", "export", "--job", str(job_id), *HOURS, "--output", "-")
    assert exported.code == 0, exported.err
    assert [row["MEASUREMENT_TIME(UTC)"] for row in exported.json["measurements"]] == ["2026-11-20T10:30:00Z"]
    story = meterpost.json(
        "windows", "show", "--meter", "1", "--resolution", "15", "--start", "2026-11-20T10:30:00Z"
    )  # fmt: skip
    assert [(one["run"], one["part"]) for one in story["runs"]] == [(missed[0], 1)]
