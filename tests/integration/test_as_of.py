"""The readings as they were known at any instant: by the very fragment that windows are closed from."""

from datetime import timedelta
from pathlib import Path

import pytest

from services.core.readings import ReadingVersion, newest
from services.platform.postgres import Pool, transaction
from services.windowing.as_of_queries import KnownReading, readings_as_of
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    begin,
    close_all,
    many_versions,
    seed_meters,
    store_versions,
    stored_rows,
    version,
)
from tests.support.command import Meterpost

HOUR = 60 * MINUTE


def told(versions: list[ReadingVersion], meter: int, known_minute: int) -> list[KnownReading]:
    """Return what the contract says of the first hour, as known some minutes after its start."""
    known_at = T0 + known_minute * MINUTE
    found = []
    for minute in range(60):
        rivals = [one for one in versions if (one.meter_id, one.measured_at) == (meter, T0 + minute * MINUTE)]
        then, now = newest(rivals, as_of=known_at), newest(rivals, as_of=T0 + 1000 * HOUR)
        if then is not None:
            found.append(
                KnownReading(
                    then.measured_at,
                    meter,
                    then.value,
                    then.interval_minutes,
                    then.is_register,
                    then.revision,
                    then.arrived_at,
                    then == now,
                )
            )
    return found


@pytest.mark.parametrize("known_minute", [0, 1, 30, 64, 65, 120, 500])
async def test_each_reading_is_the_newest_version_that_had_arrived(
    pool: Pool, database_url: str, known_minute: int
) -> None:
    versions = many_versions(11, minutes=90)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, versions)
    async with transaction(pool) as connection:
        for meter in UTILITIES:
            known = await readings_as_of(connection, T0 + known_minute * MINUTE, T0, T0 + HOUR, meter)
            assert known == told(versions, meter, known_minute)


async def test_at_a_windows_cut_off_they_are_what_the_window_holds(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    await seed_meters(database_url, UTILITIES)
    versions = [version(1, T0 + minute * MINUTE, 10 + minute) for minute in range(5)]
    versions.append(version(1, T0, 100, revision=1, arrived_at=T0 + 10 * MINUTE))  # the very cut-off
    versions.append(version(1, T0 + MINUTE, 999, revision=1, arrived_at=T0 + 10 * MINUTE + timedelta(seconds=1)))
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + HOUR)
    await close_all(store, T0 + 5 * MINUTE)
    meterpost = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})
    at = ("--meter", "1", "--from", "2026-11-20T10:00:00Z", "--to", "2026-11-20T10:05:00Z")
    known = meterpost.json("readings", "as-of", "--at", "2026-11-20T10:10:00Z", *at)["readings"]
    assert [(one["value"], one["is_newest"]) for one in known] == [
        (100, True), (11, False), (12, True), (13, True), (14, True),
    ]  # fmt: skip
    [row] = await stored_rows(database_url, 5)
    assert row.pulses == sum(one["value"] for one in known)
    assert "another version counts now" in meterpost.ok("readings", "as-of", "--at", "2026-11-20T10:10:00Z", *at)
    assert "0 readings" in meterpost.ok("readings", "as-of", "--at", "2026-11-20T10:00:30Z", *at)
    assert "no meter 77" in meterpost.refused(
        "readings", "as-of", "--at", "2026-11-20T10:10:00Z", "--meter", "77", *at[2:]
    )
