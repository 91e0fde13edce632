"""From closed windows to the receiver, on a real PostgreSQL and a real TLS server."""

from typing import Any

from tests.support.exports import Exports, at, delivering
from tests.support.job_states import rows, until_states
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver, status


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
