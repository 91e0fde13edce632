"""Jobs whose receiver fails for long: what fails, what is paused, what is told, and that it all comes in the end."""

import json
import time
from typing import Any

from services.api.job_queries import find_job
from services.api.request_store import request_recover
from services.delivery.circuits import FAILURES_BEFORE
from services.platform.postgres import Pool
from tests.integration.test_requests import asker, until_states, windows
from tests.support.exports import Exports, at, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import Authority, ScriptedReceiver, hang, running_receiver, status

# A tenth of a second instead of three days.
SOON: dict[str, Any] = {"retry_window_hours": 0.1 / 3_600}


async def test_five_failed_runs_pause_the_job_and_recover_sends_what_was_missed(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(4), at(11))
    receiver.otherwise = status(503, "full")
    job_id = await exports.add_job(to, starts_at=at(4))
    async with delivering(exports.url, **SOON):
        await until_states(exports, job_id, ["failed"] * 5 + ["planned"] * 2)
        job = await find_job(pool, 1, job_id)
        assert (job.state, job.stopped_reason) == ("paused by failures", "failed_runs")
        assert "5 runs in a row failed, the last one with http_503: full" in (job.stopped_detail or "")
        tried = len(receiver.received)
        # Slots that pass while it is paused are not skipped: they wait.
        await exports.close_windows(15, at(11), at(12))
        receiver.otherwise = status(200)
        await request_recover(pool, 1, job_id, asker())
        await until_states(exports, job_id, ["delivered"] * 8)
    assert windows(receiver) == [f"{hour:02}:00-{hour + 1:02}:00" for hour in range(4, 12)]
    assert len(receiver.received) == tried + 8
    assert (await find_job(pool, 1, job_id)).state == "active"
    progress = await exports.progress(job_id)
    assert (progress["failed_run_count"], progress["failing_since"], progress["told"]) == (0, None, "well")


async def test_a_delivered_run_in_between_and_the_count_begins_anew(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """A receiver that refuses single windows for good, in its way, does not pause the job."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(2), at(14))

    async def every_fifth(_receiver: ScriptedReceiver, request: Any) -> Any:
        takes = int(request.headers["Meterpost-Window-Start"][11:13]) % 5 == 0
        return await status(200 if takes else 500)(_receiver, request)

    receiver.otherwise = every_fifth
    job_id = await exports.add_job(to, starts_at=at(2))
    async with delivering(exports.url, **SOON):
        await until_states(
            exports, job_id, ["delivered" if hour % 5 == 0 else "failed" for hour in range(2, 14)], timeout_s=40
        )
    assert (await exports.progress(job_id))["stopped_at"] is None


async def test_delays_begin_anew_after_a_resume_and_attempts_are_counted_on(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.script.extend([status(503)] * 4 + [status(403)])
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):

        async def stopped() -> bool:
            return (await exports.progress(job_id)).get("stopped_reason") == "http_403"

        await eventually_async(stopped)
        [failed] = await exports.column("SELECT failed_in_a_row FROM export_part")
        assert failed == 5
        await exports.execute("UPDATE export_job SET resumed_at = clock_timestamp()")
        await eventually_async(lambda: len(receiver.received) >= 6)

        async def counted() -> bool:
            [row] = await exports.fetch("SELECT attempt_count, failed_in_a_row FROM export_part")
            return bool(row["attempt_count"] >= 6 and row["failed_in_a_row"] == row["attempt_count"] - 5)

        await eventually_async(counted)


async def test_a_destination_that_fails_again_and_again_is_tried_by_one_job_at_a_time_until_it_answers(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    first = await exports.add_job(to)
    async with delivering(exports.url, destination_concurrency=4, answer_seconds=0.5):
        await eventually_async(lambda: len(receiver.received) > FAILURES_BEFORE)
        receiver.otherwise = hang()
        jobs = [first, *[await exports.add_job(to) for _ in range(7)]]
        begun = len(receiver.received)
        await eventually_async(lambda: len(receiver.received) > begun + 4)
        receiver.otherwise = status(200)
        for job_id in jobs:
            await until_states(exports, job_id, ["delivered"])
    # What hung is seen in what was recorded: of the attempts that ran into the deadline, no two overlap.
    overlapping = await exports.column(
        "SELECT count(*) FROM delivery_attempt a JOIN delivery_attempt b ON a.job_id < b.job_id "
        "AND a.started_at < b.finished_at AND b.started_at < a.finished_at "
        "WHERE a.reason = 'timeout' AND b.reason = 'timeout'"
    )
    assert overlapping == [0]
    assert len(set(await exports.column("SELECT job_id FROM delivery_attempt WHERE reason = 'timeout'"))) > 1


async def test_a_dead_destination_with_10000_waiting_parts_slows_no_other(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any]
) -> None:
    """A thousand jobs with ten parts each wait for a server that accepts and never answers."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(18))
    model = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, model, ["delivered"] * 10)
    async with running_receiver(authority.server) as dead:
        dead.otherwise = hang()
        await add_dead_jobs(exports, model, {"url": dead.url, "ca_pem": authority.ca_pem}, f"127.0.0.1:{dead.port}")
        async with delivering(exports.url, destination_concurrency=2, concurrency=8):
            await eventually_async(lambda: len(dead.received) == 2)
            begun = time.monotonic()
            living = await exports.add_job(to)
            await until_states(exports, living, ["delivered"] * 10)
            took = time.monotonic() - begun
            print(f"10 runs beside 10,000 waiting parts took {took:.2f} s")
            assert took < 10
            dead.closing.set()


async def add_dead_jobs(exports: Exports, model: int, settings: dict[str, Any], address: str) -> None:
    """Add a thousand jobs, due for an hour, with the frozen runs and parts that the model job had."""
    await exports.execute(
        "INSERT INTO export_job (job_id, organization_id, starts_at) "
        "SELECT 10000 + n, 1, $1 FROM generate_series(1, 1000) n", at(8),
    )  # fmt: skip
    await exports.execute(
        "INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, "
        "frequency_minutes, resolution_minutes, transport, transport_settings) "
        "SELECT 1, 10000 + n, 1, $1, 'Dead', 'meters_measurements', 60, 15, 'https', $2 "
        "FROM generate_series(1, 1000) n",
        at(8), json.dumps(settings),
    )  # fmt: skip
    await exports.execute(
        "INSERT INTO export_job_progress (organization_id, job_id, transport, destination, seen_version, "
        "next_slot_start, next_slot_end, next_resolution_minutes, next_attempt_at) "
        "SELECT 1, 10000 + n, 'https', $1, 1, $2, $3, 15, now() - interval '1 hour' FROM generate_series(1, 1000) n",
        address, at(18), at(19),
    )  # fmt: skip
    await exports.execute(
        "INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state, "
        "part_count, row_count) SELECT 1, 10000 + n, slot_start, slot_end, 1, catalog_revision, 'frozen', 1, row_count "
        "FROM generate_series(1, 1000) n, export_run WHERE job_id = $1", model,
    )  # fmt: skip
    await exports.execute(
        "INSERT INTO export_part (organization_id, job_id, slot_start, part, first_measured_at, first_meter_id, "
        "row_count, byte_count, sha256) SELECT 1, 10000 + n, slot_start, 1, first_measured_at, first_meter_id, "
        "row_count, byte_count, sha256 FROM generate_series(1, 1000) n, export_part WHERE job_id = $1", model,
    )  # fmt: skip
