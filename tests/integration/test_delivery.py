"""From closed windows to the receiver, on a real PostgreSQL and a real TLS server."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.api.job_queries import find_job
from services.api.job_store import resume_job
from services.core.messages import WindowsClosed, encode
from services.core.retry import Answer, Verdict
from services.delivery.interval_counts import Intervals
from services.delivery.job_store import JobStore, Release
from services.delivery.run_store import Attempt, RunStore
from services.local.kafka_server import KafkaServer
from services.platform.clock import SystemClock
from services.platform.errors import Superseded
from services.platform.postgres import connect_pool
from services.platform.topics import WINDOWS_CLOSED
from tests.support.exports import NO_KAFKA, Exports, at, delivering
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.receiver import Authority, Received, ScriptedReceiver, hang, running_receiver, status


def rows(received: Received) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(received.body)["measurements"]
    return found


async def until_states(exports: Exports, job_id: int, expected: list[str], timeout_s: float = 15) -> None:
    async def reached() -> bool:
        return await exports.states(job_id) == expected

    try:
        await eventually_async(reached, timeout_s)
    except AssertionError:
        found = (await exports.states(job_id), await exports.attempts(job_id), await exports.progress(job_id))
        raise AssertionError(f"expected {expected}, found {found}") from None


async def until_stopped(exports: Exports, job_id: int, reason: str) -> dict[str, Any]:
    async def stopped() -> bool:
        return (await exports.progress(job_id)).get("stopped_reason") == reason

    await eventually_async(stopped, because=f"job stopped for {reason}")
    return await exports.progress(job_id)


async def resume(exports: Exports, job_id: int) -> None:
    await exports.execute("UPDATE export_job SET resumed_at = clock_timestamp() WHERE job_id = $1", job_id)


async def test_closed_windows_arrive_complete_and_in_order(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=5)
    await exports.close_windows(15, at(8), at(10, 15))
    job_id = await exports.add_job(to, name="All sites / hourly")
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered", "delivered"])
        await exports.close_windows(15, at(10, 15), at(11))
        await until_states(exports, job_id, ["delivered"] * 3)

    [installation] = await exports.column("SELECT installation_id FROM installation")
    stem = f"{installation}-job{job_id}-20261120T"
    assert [r.part_id for r in receiver.received] == [f"{stem}{h:02}0000Z-part1" for h in (8, 9, 10)]
    first = receiver.received[0]
    assert [(row["MEASUREMENT_TIME(UTC)"], row["METER_ID"]) for row in rows(first)] == [
        (f"2026-11-20T08:{minute:02}:00Z", meter) for minute in (0, 15, 30, 45) for meter in range(1, 6)
    ]
    assert rows(first)[1] == {
        "METER_ID": 2, "METER_TYPE": "Gas", "METER_NAME": "Meter 2", "METER_UNIT": "m3",
        "MEASUREMENT_TIME(UTC)": "2026-11-20T08:00:00Z", "RESOLUTION(min)": 15, "SITE_ID": 1, "SITE_NAME": "Site 1",
        "POWER(W)": "8.04", "ENERGY(Wh)": "2.01", "FLOW": "0.80", "VOLUME": "0.20",
    }  # fmt: skip
    assert {name: first.headers[name] for name in first.headers if name.startswith("Meterpost-")} == {
        "Meterpost-Job": str(job_id),
        "Meterpost-Run": f"job{job_id}-20261120T080000Z",
        "Meterpost-Part": "1",
        "Meterpost-Parts": "1",
        "Meterpost-Window-Start": "2026-11-20T08:00:00Z",
        "Meterpost-Window-End": "2026-11-20T09:00:00Z",
        "Meterpost-Rows": "20",
        "Meterpost-Resolution-Minutes": "15",
        "Meterpost-Content-SHA256": first.headers["Meterpost-Content-SHA256"],
        "Meterpost-Filename": f"{job_id}-All-sites-hourly_meters_measurements_"
        "20261120T080000Z_20261120T090000Z_1of1.json",
    }
    assert first.headers["Content-Type"] == "application/json; charset=utf-8"
    assert (await exports.runs(job_id))[0] == (at(8), "delivered", 1, 20)


async def test_a_run_is_cut_at_2000_measurements_and_parts_go_out_in_order(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=4_001)
    await exports.close_windows(60, at(8), at(9))
    job_id = await exports.add_job(to, resolution=60)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    assert [int(r.headers["Meterpost-Rows"]) for r in receiver.received] == [2_000, 2_000, 1]
    assert [r.headers["Meterpost-Part"] for r in receiver.received] == ["1", "2", "3"]
    assert [row["METER_ID"] for r in receiver.received for row in rows(r)] == list(range(1, 4_002))


async def test_a_part_has_at_most_one_megabyte(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """Names of three bytes a character fill the megabyte before the 2,000 measurements do."""
    await exports.seed(meters=1_500, name="語" * 190)
    await exports.close_windows(60, at(8), at(9))
    job_id = await exports.add_job(to, resolution=60)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    sizes = [len(r.body) for r in receiver.received]
    assert len(sizes) == 2
    assert 998_000 < sizes[0] <= 1_000_000
    assert [row["METER_ID"] for r in receiver.received for row in rows(r)] == list(range(1, 1_501))


async def test_chosen_sites_only_and_an_empty_run_sends_nothing(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=10, sites=3)
    await exports.close_windows(60, at(8), at(9))
    chosen = await exports.add_job(to, resolution=60, sites=[2, 3])
    empty = await exports.add_job(to, resolution=60, sites=[77])
    async with delivering(exports.url):
        await until_states(exports, chosen, ["delivered"])
        await until_states(exports, empty, ["empty"])
    [only] = receiver.received
    assert [row["METER_ID"] for row in rows(only)] == [1, 2, 4, 5, 7, 8, 10]


async def test_names_are_those_in_force_as_known_when_the_run_was_planned(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """A rename inside the slot shows from its time on; what becomes known after the planning changes no byte."""
    await exports.seed(meters=1, sites=1)
    await exports.execute(
        "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
        "VALUES (1, $1, 1, 'Renamed', 1, 'm3', 1)",
        at(8, 30),
    )
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: len(receiver.received) >= 2)
        await exports.execute("UPDATE catalog_revision SET revision = 2")
        await exports.execute(
            "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse) "
            "VALUES (1, $1, 2, 'Corrected later', 1, 'm3', 1)",
            at(7),
        )
        await exports.execute("INSERT INTO site_description VALUES (1, '-infinity', 2, 'Moved', 'UTC')")
        receiver.otherwise = status(200)
        await until_states(exports, job_id, ["delivered"])
        await exports.close_windows(15, at(9), at(10))
        await until_states(exports, job_id, ["delivered", "delivered"])
    first, second = receiver.accepted
    assert [row["METER_NAME"] for row in rows(first)] == ["Meter 1", "Meter 1", "Renamed", "Renamed"]
    assert {row["SITE_NAME"] for row in rows(first)} == {"Site 1"}
    assert {(row["METER_NAME"], row["SITE_NAME"]) for row in rows(second)} == {("Renamed", "Moved")}


async def test_paused_slots_are_recorded_as_skipped(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=2)
    await exports.close_windows(15, at(8), at(12))
    job_id = await exports.add_job(to)
    await exports.execute("INSERT INTO export_job_pause VALUES (1, $1, $2, $3)", job_id, at(9), at(10, 30))
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered", "skipped", "skipped", "delivered"])
    assert [r.headers["Meterpost-Window-Start"][11:13] for r in receiver.received] == ["08", "11"]


async def test_what_was_missed_is_caught_up_oldest_first_in_small_steps(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(5, at(8), at(10))
    job_id = await exports.add_job(to, frequency=5, resolution=5)
    async with delivering(exports.url, planned_runs=7):
        await until_states(exports, job_id, ["delivered"] * 24)
    starts = [r.headers["Meterpost-Window-Start"] for r in receiver.received]
    assert starts == sorted(set(starts))
    assert len(starts) == 24


async def test_an_edited_job_uses_its_new_frequency_from_the_next_slot_on(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """A job that rests until the end of a day is looked at again when it is edited."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(0), at(24))
    job_id = await exports.add_job(to, frequency=1440)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
        await exports.add_version(job_id, to, effective_from=at(23), frequency=15)
        await exports.close_windows(15, at(24), at(24, 30))
        await until_states(exports, job_id, ["delivered"] * 3)
    assert [r.headers["Meterpost-Rows"] for r in receiver.received] == ["96", "1", "1"]


async def test_a_deleted_job_sends_nothing_more(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(500)
    deleted = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
        await exports.execute("UPDATE export_job SET deleted_at = now() WHERE job_id = $1", deleted)

        async def retired() -> bool:
            return (await exports.progress(deleted))["next_slot_end"] is None

        await eventually_async(retired)
        receiver.otherwise = status(200)
        other = await exports.add_job(to)
        await exports.close_windows(15, at(9), at(10))
        await until_states(exports, other, ["delivered", "delivered"])
    assert {r.headers["Meterpost-Job"] for r in receiver.accepted} == {str(other)}


async def test_a_failing_receiver_gets_everything_later_in_order_and_once(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=2_500)
    await exports.close_windows(60, at(8), at(10))
    receiver.script.extend([status(500), status(200), status(503), status(429), status(200)])
    job_id = await exports.add_job(to, resolution=60)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered", "delivered"])
    assert [(r.headers["Meterpost-Window-Start"][11:13], r.headers["Meterpost-Part"]) for r in receiver.accepted] == [
        ("08", "1"), ("08", "2"), ("09", "1"), ("09", "2"),
    ]  # fmt: skip
    assert len({r.part_id for r in receiver.accepted}) == 4
    by_id: dict[str, set[bytes]] = {}
    for received in receiver.received:
        by_id.setdefault(received.part_id, set()).add(received.body)
    assert all(len(bodies) == 1 for bodies in by_id.values())
    assert [(outcome, reason) for _, outcome, reason in await exports.attempts(job_id)] == [
        ("retry", "http_500"), ("delivered", "http_200"), ("retry", "http_503"), ("retry", "http_429"),
        ("delivered", "http_200"), ("delivered", "http_200"), ("delivered", "http_200"),
    ]  # fmt: skip


async def test_a_receiver_that_is_down_gets_everything_when_it_is_up(exports: Exports, authority: Authority) -> None:
    await exports.seed(meters=3)
    await exports.close_windows(15, at(8), at(10))
    async with running_receiver(authority.server) as first:
        port = first.port
    job_id = await exports.add_job({"url": f"https://localhost:{port}/", "ca_pem": authority.ca_pem})
    async with delivering(exports.url):

        async def failed() -> bool:
            return ("retry", "connection_refused") in {a[1:] for a in await exports.attempts(job_id)}

        await eventually_async(failed)
        async with running_receiver(authority.server, port) as receiver:
            await until_states(exports, job_id, ["delivered", "delivered"])
            assert [r.headers["Meterpost-Window-Start"][11:13] for r in receiver.received] == ["08", "09"]


@pytest.mark.parametrize("code", [401, 410])
async def test_a_refusal_stops_the_job_until_it_is_resumed(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], code: int
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(10))
    receiver.otherwise = status(code, "no\x1b[31m\nthanks")
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        stopped = await until_stopped(exports, job_id, f"http_{code}")
        assert "resume the job" in stopped["stopped_detail"]
        assert "no[31m thanks" in stopped["stopped_detail"] or "no [31m thanks" in stopped["stopped_detail"]
        await exports.close_windows(15, at(10), at(11))
        receiver.otherwise = status(200)
        await resume(exports, job_id)
        await until_states(exports, job_id, ["delivered"] * 3)
    assert [r.status for r in receiver.received] == [code, 200, 200, 200]
    assert receiver.received[0].part_id == receiver.received[1].part_id
    assert (await exports.progress(job_id))["stopped_at"] is None


async def test_clocks_that_disagree_neither_swallow_a_resume_nor_lift_a_later_stop(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    job_id = await exports.add_job(to)
    pool = await connect_pool(exports.url, max_size=2)
    try:
        async with delivering(exports.url):
            await until_stopped(exports, job_id, "http_410")
            for skew in (-timedelta(hours=1), timedelta(hours=1), -timedelta(hours=2)):
                receiver.otherwise = status(401)
                assert await resume_job(pool, 1, job_id, SystemClock().now() + skew)
                await until_stopped(exports, job_id, "http_401")
                async with pool.acquire() as connection:
                    assert (await find_job(connection, 1, job_id)).state == "stopped"
                receiver.otherwise = status(410)
                assert await resume_job(pool, 1, job_id, SystemClock().now())
                await until_stopped(exports, job_id, "http_410")
    finally:
        pool.terminate()
    # A stop that an older resume lifted would have been tried again and again.
    assert [r.status for r in receiver.received] == [410, 401, 410, 401, 410, 401, 410]


async def test_a_repaired_address_reaches_the_runs_that_wait(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """The run keeps its rows and its bytes; only where it goes is the newest version's."""
    await exports.seed(meters=4, sites=2)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job({"url": "http://insecure.example/"}, sites=[1])
    async with delivering(exports.url):
        stopped = await until_stopped(exports, job_id, "bad_settings")
        assert "https://" in stopped["stopped_detail"]
        await exports.add_version(job_id, to, effective_from=at(9), sites=[2])
        await resume(exports, job_id)
        await until_states(exports, job_id, ["delivered"])
    assert {row["SITE_ID"] for row in rows(receiver.received[0])} == {1}


async def test_bytes_that_changed_are_not_sent(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
        await exports.execute("UPDATE measurement SET volume = volume + 5, energy_wh = energy_wh + 5")
        await until_stopped(exports, job_id, "rendering_differs")
        count = len(receiver.received)
    assert (await exports.attempts(job_id))[-1] == (1, "stop", "rendering_differs")
    assert len({r.body for r in receiver.received}) == 1
    assert len(receiver.received) == count


async def test_one_dead_destination_does_not_delay_others(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any]
) -> None:
    """Fifty jobs wait for a server that hangs; another job's part passes them all."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    async with running_receiver(authority.server) as dead:
        dead.otherwise = hang()
        for number in range(50):
            await exports.add_job({"url": f"{dead.url}/{number}", "ca_pem": authority.ca_pem})
        async with delivering(exports.url, concurrency=6, destination_concurrency=3):
            await eventually_async(lambda: len(dead.received) == 3)
            job_id = await exports.add_job(to)
            await until_states(exports, job_id, ["delivered"])
            assert dead.most_at_once == 3
            dead.closing.set()


async def test_a_zombies_result_is_refused(exports: Exports, to: dict[str, Any]) -> None:
    """A worker whose lease has passed to another can neither record, freeze, plan nor release."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job({"url": "https://127.0.0.1:9/"})
    async with delivering(exports.url):
        await eventually_async(lambda: exports.attempts(job_id))
    clock = SystemClock()
    pool = await connect_pool(exports.url, max_size=2)
    try:
        jobs, others, runs = JobStore(pool, "https", "zombie"), JobStore(pool, "https", "heir"), RunStore(pool)
        later = clock.now() + timedelta(hours=2)
        zombie = await jobs.claim(later, timedelta(seconds=30), [])
        assert zombie is not None
        assert await others.claim(later, timedelta(seconds=30), []) is None
        heir = await others.claim(later + timedelta(seconds=31), timedelta(seconds=30), [])
        assert heir is not None
        assert heir.epoch == zombie.epoch + 1
        found = await runs.next_unfinished(zombie)
        assert found is not None
        run, part = found
        assert part is not None
        attempts = await exports.attempts(job_id)
        delivered = Attempt(later, later, Answer(Verdict.DELIVERED, "http_200", ""), None)
        for write in (
            lambda: runs.record(zombie, run, part, delivered),
            lambda: runs.freeze(zombie, run, [], Intervals(0, 0, 0), later),
            lambda: jobs.stop(zombie, later, "http_401", ""),
            lambda: jobs.load(zombie),
        ):
            with pytest.raises(Superseded):
                await write()
        await jobs.release(zombie, Release(None, "https", "nowhere:1"))
        assert (await exports.progress(job_id))["lease_owner"] == "heir"
        assert await exports.attempts(job_id) == attempts
        assert await exports.states(job_id) == ["frozen"]
        # The heir's first acknowledgement may have been lost: it records the same again.
        assert await runs.record(heir, run, part, delivered)
        assert await runs.record(heir, run, part, delivered)
        assert await exports.attempts(job_id) == [*attempts, (1, "delivered", "http_200")]
        assert await exports.states(job_id) == ["delivered"]
    finally:
        pool.terminate()


async def test_a_killed_process_sends_the_same_again_under_the_same_id(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], tmp_path: Path
) -> None:
    """Kill -9 after the receiver's answer and before our commit: one id, the same bytes, and nothing missing."""
    await exports.seed(meters=3)
    await exports.close_windows(15, at(8), at(10))
    job_id = await exports.add_job(to)
    platform = Platform(NO_KAFKA, exports.url, "", tmp_path)
    environment = {"METERPOST_LEASE_SECONDS": "1", "METERPOST_LOOK_SECONDS": "0.05"}
    with running(platform):
        async with AsyncExitStack() as held:
            connection = await asyncpg.connect(exports.url)
            held.push_async_callback(connection.close)
            await held.enter_async_context(connection.transaction())
            # Attempts cannot be recorded while this lasts.
            await connection.execute("LOCK TABLE delivery_attempt IN SHARE MODE")
            process = platform.start("services.delivery", "https", environment=environment)
            await eventually_async(lambda: receiver.accepted, 20)

            async def commits() -> list[Any]:
                return await exports.column(
                    "SELECT 1 FROM pg_locks WHERE relation = 'delivery_attempt'::regclass AND NOT granted"
                )

            await eventually_async(commits, because="the result is about to be recorded")
            process.kill()
        assert await exports.attempts(job_id) == []
        platform.start("services.delivery", "https", environment=environment)
        await until_states(exports, job_id, ["delivered", "delivered"], 30)
    ids = [r.part_id for r in receiver.accepted]
    assert ids == [ids[0], ids[0], ids[2]]
    assert ids[0] != ids[2]
    assert receiver.accepted[0].body == receiver.accepted[1].body


async def test_postgresql_away_for_a_moment_costs_no_second_delivery(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """Every connection is broken off while the receiver thinks; its answer is recorded all the same."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    broken = asyncio.Event()

    async def answer(_receiver: ScriptedReceiver, _request: Any) -> Any:
        await exports.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        broken.set()
        return await status(200)(_receiver, _request)

    receiver.script.append(answer)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    assert broken.is_set()
    assert len(receiver.received) == 1


async def test_the_doorbell_wakes_delivery_before_its_timer_does(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], kafka_server: KafkaServer, tmp_path: Path
) -> None:
    """With an hour between two looks of its own, what was closed still goes out at once."""
    platform = Platform(kafka_server.bootstrap_servers, exports.url, f"bell-{time.monotonic_ns()}.", tmp_path)
    await platform.declare_topics()
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to)
    more = {"kafka_bootstrap_servers": platform.bootstrap_servers, "topic_prefix": platform.prefix}
    async with delivering(exports.url, look_seconds=3_600, **more), platform.producer() as producer:
        await until_states(exports, job_id, ["delivered"])
        for until in (10, 11):
            await exports.close_windows(15, at(until - 1), at(until))
            closed = WindowsClosed(15, at(until))
            await producer.send(platform.topic(WINDOWS_CLOSED), encode(closed), key=b"15")
            await until_states(exports, job_id, ["delivered"] * (until - 8))


async def test_a_stop_in_the_middle_of_an_attempt_gives_the_job_back(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """The next process need not wait for the lease to end, and sends the same part again."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.script.append(hang())
    job_id = await exports.add_job(to)
    async with delivering(exports.url, lease_seconds=3_600, shutdown_deadline_seconds=1):
        await eventually_async(lambda: receiver.received)
    assert (await exports.progress(job_id))["lease_owner"] is None
    async with delivering(exports.url, instance="another"):
        await until_states(exports, job_id, ["delivered"])
    assert len({(r.part_id, r.body) for r in receiver.received}) == 1


async def test_a_process_takes_back_what_its_predecessor_of_the_same_name_held(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(503)
    job_id = await exports.add_job(to)
    async with delivering(exports.url):
        await eventually_async(lambda: receiver.received)
    await exports.execute(
        "UPDATE export_job_progress SET lease_owner = 'delivery-in-test', lease_until = now() + interval '1 hour', "
        "next_attempt_at = now() + interval '1 hour'"
    )
    receiver.otherwise = status(200)
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])


async def test_an_unknown_transport_is_named_with_those_there_are(exports: Exports, tmp_path: Path) -> None:
    process = Platform(NO_KAFKA, exports.url, "", tmp_path).start("services.delivery", "pigeon")
    await eventually_async(lambda: process.exit_code is not None)
    assert process.exit_code == 2
    assert "usage: python -m services.delivery TRANSPORT, one of: https" in process.log_tail(5)
