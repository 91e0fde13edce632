"""One window explained: what counted, what did not and why, the arithmetic, and who carried it."""

from decimal import Decimal
from pathlib import Path

import pytest

from services.platform.postgres import Pool, transaction
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    begin,
    close_all,
    configure,
    seed_meters,
    store_versions,
    stored_rows,
    version,
)
from tests.support.command import Meterpost

HOUR = 60 * MINUTE
SHOW = ("windows", "show", "--start", "2026-11-20T10:00:00Z")


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


async def test_every_version_has_its_role_and_the_arithmetic_is_written_out(
    pool: Pool, database_url: str, meterpost: Meterpost
) -> None:
    await seed_meters(database_url, UTILITIES)
    versions = [
        version(3, T0, 40),
        version(3, T0, 50, revision=1),
        version(3, T0 + MINUTE, 7),
        version(3, T0 + MINUTE, 8, revision=1, arrived_at=T0 + 20 * MINUTE),
        version(3, T0 + 2 * MINUTE, 9, interval_minutes=15),
        version(3, T0 + 3 * MINUTE, 1, arrived_at=T0 + 21 * MINUTE),
    ]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + 5 * HOUR)
    await close_all(store, T0 + 2 * HOUR)
    async with transaction(pool) as connection:  # an edit that came after the closing changes nothing
        await connection.execute("UPDATE catalog_revision SET revision = 2")
        await configure(connection, 3, UTILITIES[1], revision=2)
        await connection.execute(
            "INSERT INTO export_job (job_id, organization_id, starts_at) VALUES (7, 1, '-infinity')"
        )
        await connection.execute(
            "INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, "
            "frequency_minutes, resolution_minutes, transport, transport_settings) "
            "VALUES (1, 7, 1, '-infinity', 'J', 'meters_measurements', 15, 5, 'https', '{}')"
        )
        await connection.execute(
            "INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, "
            "state) VALUES (1, 7, $1, $2, 1, 1, 'delivered')",
            T0, T0 + 15 * MINUTE,
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO export_part (organization_id, job_id, slot_start, part, first_measured_at, first_meter_id, "
            "row_count, byte_count, sha256, state) "
            "VALUES (1, 7, $1, 1, $1, 1, 2, 9, '', 'delivered'), (1, 7, $1, 2, $1, 3, 2, 9, '', 'waiting'), "
            "(1, 7, $1, 3, $1, 4, 2, 9, '', 'waiting')",
            T0,
        )
    story = meterpost.json(*SHOW, "--meter", "3", "--resolution", "5")
    assert [(one["value"], one["role"], one["late_by_seconds"]) for one in story["versions"]] == [
        (40, "outranked", None),
        (50, "counted", None),
        (7, "counted", None),
        (8, "late", 600.0),
        (9, "longer than the window", None),
        (1, "late", 660.0),
    ]
    assert story["arithmetic"] == [
        "50 + 7 = 57 pulses",
        "volume: 57 pulses x 0.01 m3 x 0.9626 (normalization) = 0.548682 m3",
        "flow: 0.548682 m3 x 60 / 5 = 6.58 m3 per hour",
        "energy: 0.548682 m3 x 11.2345 kWh per m3 x 1000 = 6164.167929 Wh",
        "power: 6164.167929 Wh x 60 / 5 = 73970.02 W",
        "intervals: 2 present of 5 expected",
    ]
    [row] = [row for row in await stored_rows(database_url, 5) if row.window_start == T0]
    assert (Decimal("0.548682"), Decimal("6164.167929")) == (row.volume, row.energy_wh)
    assert story["configuration"]["revision"] == 1
    assert story["closing"]["offsets"] == {"readings.logger/0": 17}
    assert story["cut_off"] == "2026-11-20T10:10:00Z"
    assert story["runs"] == [{"run": "job7-20261120T100000Z", "state": "delivered", "part": 2, "part_state": "waiting"}]
    people = meterpost.ok(*SHOW, "--meter", "3", "--resolution", "5")
    assert "late by 0:10:00" in people
    assert story["closing"]["sha256"] in people
    assert "job7-20261120T100000Z" in people


async def test_registers_and_their_oddities_are_told(pool: Pool, database_url: str, meterpost: Meterpost) -> None:
    await seed_meters(database_url, {1: UTILITIES[1], 2: UTILITIES[1]}, moduli={1: 1000})
    registers = {1: [990, 995, 3], 2: [500, 505, 10]}
    await store_versions(
        database_url,
        [
            version(meter, T0 + (5 * place - 5) * MINUTE, value, is_register=True)
            for meter, values in registers.items()
            for place, value in enumerate(values)
        ],
    )
    store = await begin(pool, database_url, T0 + 5 * HOUR, first=T0 - HOUR)
    await close_all(store, T0 + 2 * HOUR)
    plain = meterpost.json(*SHOW, "--meter", "1", "--resolution", "5")
    assert plain["arithmetic"][:2] == [
        "register 995 - 990 (at 2026-11-20T10:01:00Z, at 2026-11-20T09:56:00Z) = 5 pulses",
        "note: begins at a register from before the window: it spans a gap",
    ]
    later = ("windows", "show", "--start", "2026-11-20T10:05:00Z", "--resolution", "5")
    rolled = meterpost.json(*later, "--meter", "1")
    assert rolled["row"]["pulses"] == 8
    assert "note: the register rolled over" in rolled["arithmetic"]
    assert [event["kind"] for event in rolled["events"]] == ["register_rolled_over"]
    reset = meterpost.json(*later, "--meter", "2")
    assert reset["row"]["pulses"] == 0
    assert any("reset" in line for line in reset["arithmetic"])
    assert "Event register_reset" in meterpost.ok(*later, "--meter", "2")


async def test_an_open_window_and_an_empty_one_say_so(pool: Pool, database_url: str, meterpost: Meterpost) -> None:
    await seed_meters(database_url, UTILITIES)
    refused = meterpost.refused(*SHOW, "--meter", "1", "--resolution", "5")
    assert "no window was ever closed" in refused
    await store_versions(database_url, [version(2, T0, 5)])
    store = await begin(pool, database_url, T0 + 30 * MINUTE)
    await close_all(store, T0 + 20 * MINUTE)
    assert "closed, without a row" in meterpost.ok(*SHOW, "--meter", "1", "--resolution", "5")
    assert "open. It closes when everything is stored that arrived up to 2026-11-20T11:05:00Z" in meterpost.ok(
        *SHOW, "--meter", "2", "--resolution", "60"
    )
    assert "has no meter 99" in meterpost.refused(*SHOW, "--meter", "99", "--resolution", "5")
    assert "one starts at 2026-11-20T10:00:00Z" in meterpost.refused(
        "windows", "show", "--meter", "1", "--resolution", "5", "--start", "2026-11-20T10:02:00Z"
    )
    for start in ("0001-01-01T00:00:00Z", "9999-12-31T23:55:00Z"):
        refused = meterpost.refused("windows", "show", "--meter", "1", "--resolution", "5", "--start", start)
        assert "no window there is ever closed" in refused


async def test_what_did_not_count_is_named_and_stays_out_of_the_sum(
    pool: Pool, database_url: str, meterpost: Meterpost
) -> None:
    await seed_meters(database_url, UTILITIES)
    versions = [version(1, T0, 30, interval_minutes=5), version(1, T0 + 2 * MINUTE, 6), version(1, T0 + 3 * MINUTE, 5)]
    versions += [version(2, T0, 10), version(2, T0 + MINUTE, 5000, is_register=True)]
    await store_versions(database_url, versions)
    store = await begin(pool, database_url, T0 + HOUR)
    await close_all(store, T0 + 20 * MINUTE)
    overlapping = meterpost.json(*SHOW, "--meter", "1", "--resolution", "5")
    assert overlapping["arithmetic"][:2] == ["30 = 30 pulses", "note: some readings were not counted"]
    assert [one["role"] for one in overlapping["versions"]] == ["counted"] + ["not counted: inside a longer one"] * 2
    mixed = meterpost.json(*SHOW, "--meter", "2", "--resolution", "5")
    assert mixed["arithmetic"][0] == "10 = 10 pulses"
    assert [one["role"] for one in mixed["versions"]] == ["counted", "not counted: of the other kind"]
    assert "DOES NOT ADD UP" not in str((overlapping["arithmetic"], mixed["arithmetic"]))


@pytest.mark.parametrize(
    ("change", "first_line"),
    [
        ("UPDATE measurement SET pulses = 58 WHERE resolution_minutes = 5", "50 + 7 = 57 pulses; the row says 58"),
        ("UPDATE measurement SET energy_wh = 58 WHERE resolution_minutes = 5", "50 + 7 = 57 pulses"),
        ("UPDATE meter_configuration SET units_per_pulse = 7", "50 + 7 = 57 pulses"),
        ("DELETE FROM reading WHERE value = 7", "50 = 50 pulses; the row says 57"),
        ("DELETE FROM reading", "no reading = 0 pulses; the row says 57"),
    ],
)
async def test_a_row_that_was_changed_is_not_explained_away(
    pool: Pool, database_url: str, meterpost: Meterpost, change: str, first_line: str
) -> None:
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, [version(1, T0, 50), version(1, T0 + MINUTE, 7)])
    store = await begin(pool, database_url, T0 + HOUR)
    await close_all(store, T0 + 20 * MINUTE)
    show = (*SHOW, "--meter", "1", "--resolution", "5")
    assert "DOES NOT ADD UP" not in meterpost.ok(*show)
    async with transaction(pool) as connection:
        await connection.execute(change)
    arithmetic = meterpost.json(*show)["arithmetic"]
    assert arithmetic[0] == first_line
    assert "THIS DOES NOT ADD UP" in arithmetic[-1]


async def test_a_row_whose_readings_are_no_longer_kept_says_so(
    pool: Pool, database_url: str, meterpost: Meterpost
) -> None:
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, [version(1, T0, 50), version(1, T0 + 48 * HOUR, 7)])
    store = await begin(pool, database_url, T0 + 50 * HOUR)
    await close_all(store, T0 + 20 * MINUTE)
    async with transaction(pool) as connection:
        await connection.execute("DROP TABLE reading_20261120, reading_superseded_20261120")
    arithmetic = meterpost.json(*SHOW, "--meter", "1", "--resolution", "5")["arithmetic"]
    assert arithmetic[0] == "50 pulses; the readings are no longer kept"
    assert "DOES NOT ADD UP" not in str(arithmetic)
