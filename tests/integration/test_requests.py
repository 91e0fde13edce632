"""What somebody asks of a job beside its schedule, through the command's own functions, on a real receiver."""

from datetime import datetime
from typing import Any

import pytest

from services.api.job_store import pause_job, resume_job
from services.api.request_store import (
    Asker,
    list_requests,
    request_backfill,
    request_recover,
    request_resend,
    request_retry,
    request_run_now,
)
from services.delivery.model import Claim, JobKey, Request
from services.delivery.request_store import RequestStore
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.postgres import Pool, connect_pool
from tests.support.exports import Exports, at, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, status


def asker() -> Asker:
    return Asker("me@here", SystemClock().now())


def windows(receiver: ScriptedReceiver) -> list[str]:
    """Return the windows of what was accepted, as hours and minutes, in the order of their coming."""
    return [
        f"{r.headers['Meterpost-Window-Start'][11:16]}-{r.headers['Meterpost-Window-End'][11:16]}"
        for r in receiver.accepted
    ]


async def until_done(pool: Pool, job_id: int, request_id: int) -> str:
    """Wait for a request and return what came of it."""

    async def done() -> str | None:
        found = {one.request_id: one for one in await list_requests(pool, 1, job_id, 100)}
        return found[request_id].outcome if found[request_id].done_at is not None else None

    await eventually_async(done, because="the request is done")
    return (await done()) or ""


async def until_states(exports: Exports, job_id: int, expected: list[str], timeout_s: float = 15) -> None:
    """Wait until a job's runs have these states."""

    async def reached() -> bool:
        return await exports.states(job_id) == expected

    await eventually_async(reached, timeout_s, because=f"states {expected}")


async def test_run_now_ends_the_slot_early_and_nothing_is_sent_twice(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2)
    await exports.close_windows(15, at(8), at(9, 30))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        said = await until_done(pool, job_id, await request_run_now(pool, 1, job_id, asker()))
        assert "09:30" in said
        await until_states(exports, job_id, ["delivered"] * 2)
        again = await until_done(pool, job_id, await request_run_now(pool, 1, job_id, asker()))
        assert "no window after 2026-11-20T09:30:00+00:00 is closed yet" in again
        await exports.close_windows(15, at(9, 30), at(11))
        await until_states(exports, job_id, ["delivered"] * 4)
    assert windows(receiver) == ["08:00-09:00", "09:00-09:30", "09:30-10:00", "10:00-11:00"]
    assert [r.headers["Meterpost-Rows"] for r in receiver.accepted] == ["8", "4", "4", "8"]


async def test_a_resend_is_the_same_under_the_same_ids_and_recorded_as_such(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2_500)
    await exports.close_windows(60, at(8), at(10))
    job_id = await exports.add_job(to, resolution=60)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"] * 2)
        await until_done(pool, job_id, await request_resend(pool, 1, job_id, at(8), asker()))
        await eventually_async(lambda: len(receiver.accepted) == 6)
        await until_states(exports, job_id, ["delivered"] * 2)
    first, resent = receiver.accepted[:2], receiver.accepted[4:]
    assert [(r.part_id, r.body) for r in resent] == [(r.part_id, r.body) for r in first]
    assert [r.headers.get("Meterpost-Resend") for r in receiver.accepted] == [None] * 4 + ["1"] * 2
    assert await exports.column("SELECT resend_count FROM export_run ORDER BY slot_start") == [1, 0]
    assert await exports.column(
        "SELECT attempt FROM delivery_attempt WHERE slot_start = $1 ORDER BY part, attempt", at(8)
    ) == [1, 2, 1, 2]


async def test_a_retry_does_not_wait_for_its_time(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.script.append(status(503, headers={"Retry-After": "3600"}))
    job_id = await exports.add_job(to)
    async with delivering(exports.url, longest_retry_seconds=3_600):
        await eventually_async(lambda: exports.attempts(job_id))
        await until_done(pool, job_id, await request_retry(pool, 1, job_id, at(8), asker()))
        await until_states(exports, job_id, ["delivered"])
    assert [r.status for r in receiver.received] == [503, 200]


async def test_a_retry_lifts_a_stop(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.script.append(status(401))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):

        async def stopped() -> bool:
            return (await exports.progress(job_id)).get("stopped_reason") == "http_401"

        await eventually_async(stopped)
        with pytest.raises(UserError, match="is stopped"):
            await request_run_now(pool, 1, job_id, asker())
        await request_retry(pool, 1, job_id, None, asker())
        await until_states(exports, job_id, ["delivered"])


async def test_a_retry_of_all_that_failed_reads_no_other_run(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    """A job that delivers every five minutes has 200,000 runs after two years."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    await exports.execute(
        "INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state) "
        "SELECT 1, $1, $2::timestamptz - n * interval '1 hour', $2::timestamptz - (n - 1) * interval '1 hour', 1, 1, "
        "CASE n % 10000 WHEN 5 THEN 'failed' WHEN 6 THEN 'given_up' ELSE 'delivered' END "
        "FROM generate_series(1, 20000) n",
        job_id,
        at(0),
    )
    number = await request_retry(pool, 1, job_id, None, asker())
    progress = await exports.progress(job_id)
    claim = Claim(JobKey(1, job_id), progress["epoch"], "anywhere")
    alone = await connect_pool(exports.url, max_size=1)

    async def rows_read() -> int:
        await alone.execute("SELECT pg_stat_force_next_flush()")
        found: int = await alone.fetchval(
            "SELECT coalesce(seq_tup_read, 0) + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes i "
            "WHERE i.relid = t.relid) FROM pg_stat_user_tables t WHERE relname = 'export_run'"
        )
        return found

    try:
        before = await rows_read()
        request = Request(number, "retry", None, None, None, None)
        await RequestStore(alone).retry(claim, request, SystemClock().now())
        read = await rows_read() - before
    finally:
        alone.terminate()
    assert await until_done(pool, job_id, number) == "0 parts are tried at once; 2 runs had failed"
    states = await exports.states(job_id)
    assert {state: states.count(state) for state in set(states)} == {"frozen": 2, "given_up": 2, "delivered": 19_997}
    assert 0 < read < 50


async def test_a_backfill_sends_what_lies_before_and_what_a_pause_skipped_and_nothing_else(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(4), at(12))
    job_id = await exports.add_job(to, starts_at=at(8))
    await exports.execute("INSERT INTO export_job_pause VALUES (1, $1, $2, $3)", job_id, at(9), at(11))
    async with delivering(exports.url, planned_runs=2):
        await until_states(exports, job_id, ["delivered", "skipped", "skipped", "delivered"])
        request = await request_backfill(pool, 1, job_id, at(2), at(23), asker())
        await until_states(exports, job_id, ["delivered"] * 8)
        assert await until_done(pool, job_id, request) == "all slots of the range have runs"
        await exports.close_windows(15, at(12), at(13))
        await until_states(exports, job_id, ["delivered"] * 9)
    assert sorted(windows(receiver)) == [f"{hour:02}:00-{hour + 1:02}:00" for hour in range(4, 13)]
    assert windows(receiver)[-1] == "12:00-13:00"
    assert len({r.part_id for r in receiver.accepted}) == 9
    [backfill] = await list_requests(pool, 1, job_id, 10)
    assert (backfill.kind, backfill.requested_by, backfill.run_count) == ("backfill", "me@here", 6)


async def test_a_backfill_of_rows_that_were_dropped_leaves_no_run_that_says_it_was_empty(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(4), at(12))
    job_id = await exports.add_job(to, starts_at=at(8))
    await exports.closed(60, at(12), opened_at=at(4))  # which keeps its rows
    await exports.execute("DELETE FROM measurement WHERE window_start < $1", at(6))
    await exports.execute("INSERT INTO measurement_retention VALUES (15, '1 day', $1)", at(6))
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"] * 4)
        await until_done(pool, job_id, await request_backfill(pool, 1, job_id, at(2), at(23), asker()))
        await until_states(exports, job_id, ["delivered"] * 6)
        assert len(receiver.accepted) == 6
        said = await until_done(pool, job_id, await request_backfill(pool, 1, job_id, at(2), at(5), asker()))
        assert "still kept" in said
    assert windows(receiver)[-2:] == ["06:00-07:00", "07:00-08:00"]


async def test_a_run_goes_out_under_the_version_it_was_planned_with_and_a_backfill_under_that_of_its_slots(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=4, sites=2)
    await exports.close_windows(15, at(6), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to, starts_at=at(8), name="Before")
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
        await exports.add_version(job_id, to, effective_from=at(9), sites=[2], name="After")
        receiver.otherwise = status(200)
        await exports.close_windows(15, at(9), at(10))
        await until_states(exports, job_id, ["delivered"] * 2)
        await request_backfill(pool, 1, job_id, at(7), at(8), asker())
        await until_states(exports, job_id, ["delivered"] * 3)
    assert [(r.headers["Meterpost-Rows"], "Before" in r.headers["Meterpost-Filename"]) for r in receiver.accepted] == [
        ("16", True), ("8", False), ("16", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [(at(8), at(8), "must begin before"), (at(9), at(12), "by itself"), (at(7), at(6), "must begin before")],
)
async def test_backfills_that_make_no_sense(
    exports: Exports, to: dict[str, Any], pool: Pool, start: datetime, end: datetime, words: str
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    with pytest.raises(UserError, match="has not begun yet"):
        await request_backfill(pool, 1, job_id, at(8), at(9), asker())
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    with pytest.raises(UserError, match=words):
        await request_backfill(pool, 1, job_id, start, end, asker())


async def test_requests_that_cannot_be_done_say_why(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    with pytest.raises(UserError, match="there is no run"):
        await request_resend(pool, 1, job_id, at(3), asker())
    with pytest.raises(UserError, match="is delivered, so it cannot be tried again"):
        await request_retry(pool, 1, job_id, at(8), asker())
    with pytest.raises(UserError, match="nothing is missing"):
        await request_recover(pool, 1, job_id, asker())
    with pytest.raises(UserError, match="there is no job 99"):
        await request_run_now(pool, 1, 99, asker())
    assert await pause_job(pool, 1, job_id)
    with pytest.raises(UserError, match="is paused"):
        await request_run_now(pool, 1, job_id, asker())
    assert await resume_job(pool, 1, job_id, SystemClock().now())
    assert len(receiver.received) == 1
