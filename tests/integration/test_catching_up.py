"""A job that was left in place while the arrival clock jumped over months."""

from datetime import datetime, timedelta
from typing import Any

from tests.support.exports import DAY, Exports, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import ScriptedReceiver

DAYS = 980
SLOTS = DAYS * 288
# Slot by slot it takes a quarter of an hour.
PATIENCE_S = 60


def slot(number: int) -> datetime:
    """Return the start of a slot of 5 minutes."""
    return DAY + number * timedelta(minutes=5)


async def test_years_of_empty_slots_are_planned_in_seconds(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    """Others have rows in every window; our few are found between them, and paused slots are still skipped."""
    await exports.seed(meters=1)
    await exports.close_windows(5, slot(0), slot(SLOTS), meters=[])
    await exports.execute(
        """
        INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present,
                                 intervals_expected, pulses)
        SELECT w, 99, 2, 5, 1, 1, 0
        FROM generate_series($1::timestamptz, $2::timestamptz, interval '5 minutes') w
        """,
        slot(0), slot(SLOTS - 1),
    )  # fmt: skip
    filled = [1, 2, 5_000, 150_000, 150_001, SLOTS - 1]
    for number in filled:
        await exports.close_windows(5, slot(number), slot(number + 1))
    await exports.closed(5, slot(SLOTS), opened_at=slot(0))
    job_id = await exports.add_job(to, frequency=5, resolution=5)
    paused = (slot(150_001), slot(160_000))
    await exports.execute("INSERT INTO export_job_pause VALUES (1, $1, $2, $3)", job_id, *paused)
    counts = "SELECT state, count(*) FROM export_run WHERE job_id = $1 GROUP BY state"

    async def is_done() -> bool:
        found = {row["state"]: row["count"] for row in await exports.fetch(counts, job_id)}
        return found == {"empty": SLOTS - 5 - 9_999, "skipped": 9_999, "delivered": 5}

    async with delivering(exports.url):
        await eventually_async(is_done, PATIENCE_S, because="every slot is planned")
    expected = [f"{slot(number):%Y-%m-%dT%H:%M:%SZ}" for number in filled if number != 150_001]
    assert [r.headers["Meterpost-Window-Start"] for r in receiver.received] == expected
    # Just as a run that was found to be empty when it was its turn.
    told = "SELECT count(*) FROM export_run WHERE state = 'empty' AND (frozen_at IS NULL OR finished_at IS NULL)"
    assert await exports.column(told) == [0]
    assert (await exports.progress(job_id))["next_slot_start"] == slot(SLOTS)
