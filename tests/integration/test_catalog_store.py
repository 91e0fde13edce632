"""The catalog on a real PostgreSQL: one transaction a change, revisions in order, nothing ever updated."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

from services.api.catalog_queries import attachments, devices, meters, organizations, sites
from services.api.catalog_store import (
    CHANNEL,
    BridgeLink,
    CatalogChange,
    InputLink,
    NewDevice,
    NewMeter,
    NewSite,
    catalog_change,
)
from services.api.job_queries import Job, find_job, list_jobs
from services.api.job_settings import JobSettings, NewJob, https_settings
from services.api.job_store import create_job, delete_job, edit_job, pause_job, resume_job
from services.core.conversion import Utility
from services.core.schedule import ALLOWED_RESOLUTIONS_MINUTES
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction
from tests.support.polling import eventually_async

NOW = datetime(2026, 11, 20, 10, 7, 30, tzinfo=UTC)
DESTINATION = {"url": "https://example.org/in"}
HOURLY = JobSettings("Hourly", 60, 60, None, "https", DESTINATION)


async def revision_of(pool: Pool) -> int:
    found: int = await pool.fetchval("SELECT revision FROM catalog_revision")
    return found


async def set_clock(pool: Pool, clock: datetime) -> None:
    await pool.execute(
        """
        INSERT INTO ingest_progress (topic, partition, next_offset, watermark, epoch, owner)
        VALUES ('readings.bridge', 0, 1, $1, 1, 'test')
        ON CONFLICT (topic, partition) DO UPDATE SET watermark = excluded.watermark
        """,
        clock,
    )


def meter(name: str, site_id: int, **changes: object) -> NewMeter:
    plain = NewMeter(name, "Electricity", Utility.ELECTRICITY, "kWh", Decimal("0.001"), site_id)
    return replace(plain, **changes)  # type: ignore[arg-type] # the changes are this file's own


async def add_plant(change: CatalogChange, organization: str = "Acme") -> tuple[int, int]:
    organization_id = await change.organization(organization)
    [site_id] = await change.add_sites(organization_id, [NewSite("Plant", "Europe/Berlin")])
    return organization_id, site_id


async def test_a_change_is_stamped_with_one_revision_and_rings(pool: Pool, database_url: str) -> None:
    rung: list[str] = []
    listener = await asyncpg.connect(database_url)
    await listener.add_listener(CHANNEL, lambda *call: rung.append(str(call[3])))
    async with catalog_change(pool) as change:
        organization_id, site_id = await add_plant(change)
        await change.add_devices(organization_id, [NewDevice("LG-1", "logger"), NewDevice("BR-1", "bridge")])
        gas = meter(
            "Boiler",
            site_id,
            meter_type="Gas",
            utility=Utility.GAS,
            unit="Nm3",
            units_per_pulse=Decimal("0.01"),
            normalization_factor=Decimal("0.95"),
            calorific_value=Decimal("10.55"),
            register_modulus=10**6,
            cadence_minutes=15,
            serial_number="SN-7",
        )
        ids = await change.add_meters(organization_id, [gas, meter("Hall", site_id)])
        await change.attach_inputs([InputLink("LG-1", 2, ids[0])])
        later = datetime(2026, 1, 1, tzinfo=UTC)
        await change.attach_bridges([BridgeLink("BR-1", ids[1]), BridgeLink("BR-1", ids[1], later, attached=False)])
    await eventually_async(lambda: rung == ["1"], because="the change rings with its revision")
    await listener.close()
    assert await revision_of(pool) == 1
    for table in ("organization", "site", "site_description", "device", "meter", "meter_configuration"):
        assert {row["revision"] for row in await pool.fetch(f"SELECT revision FROM {table}")} == {1}, table
    starts = await pool.fetch(
        """
        SELECT valid_from = '-infinity' AS always FROM meter_configuration
        UNION ALL SELECT valid_from = '-infinity' FROM input_attachment
        UNION ALL SELECT valid_from = '-infinity' FROM site_description
        """
    )
    assert all(row["always"] for row in starts)

    boiler, hall = await meters(pool, organization_id)
    assert (boiler.meter_id, boiler.name, boiler.unit, boiler.units_per_pulse) == (
        ids[0],
        "Boiler",
        "Nm3",
        Decimal("0.01"),
    )
    assert (boiler.calorific_value, boiler.register_modulus, boiler.cadence_minutes) == (Decimal("10.55"), 10**6, 15)
    assert (boiler.serial_number, boiler.site_name, hall.name) == ("SN-7", "Plant", "Hall")
    assert [(one.name, one.time_zone) for one in await sites(pool, organization_id)] == [("Plant", "Europe/Berlin")]
    assert {one.kind for one in await devices(pool, ["LG-1", "BR-1", "none"])} == {"logger", "bridge"}
    links = await attachments(pool, organization_id=organization_id)
    assert {(one.device_id, one.input, one.meter_id, one.attached) for one in links} == {
        ("LG-1", 2, ids[0], True),
        ("BR-1", None, ids[1], True),
        ("BR-1", None, ids[1], False),
    }
    assert max(one.valid_from for one in links) == later


async def test_a_change_that_fails_leaves_nothing(pool: Pool) -> None:
    async def fail() -> None:
        async with catalog_change(pool) as change:
            organization_id, _site_id = await add_plant(change)
            await change.add_meters(organization_id, [meter("Lost", 999_999)])

    with pytest.raises(UserError, match="site_id"):
        await fail()
    assert await organizations(pool) == []
    assert await revision_of(pool) == 0


async def test_a_change_of_nothing_takes_no_revision(pool: Pool) -> None:
    async with catalog_change(pool) as change:
        await change.organization("Acme")
    async with catalog_change(pool) as change:
        await change.organization("Acme")
        await change.add_devices(1, [])
        assert await change.add_meters(1, []) == []
        await change.attach_bridges([])
    assert await revision_of(pool) == 1


async def test_changes_at_once_get_revisions_one_after_the_other(pool: Pool) -> None:
    async def change_once(name: str) -> int:
        async with catalog_change(pool) as change:
            await change.organization(name)
        return change.revision

    revisions = await asyncio.gather(*(change_once(f"Organization {number}") for number in range(8)))
    assert sorted(revisions) == list(range(1, 9))


async def test_ids_that_a_person_chose_are_never_given_out_again(pool: Pool) -> None:
    async with catalog_change(pool) as change:
        organization_id, site_id = await add_plant(change)
        chosen = await change.add_meters(organization_id, [meter("A", site_id, meter_id=500), meter("B", site_id)])
    async with catalog_change(pool) as change:
        following = await change.add_meters(organization_id, [meter("C", site_id)])
    assert chosen[0] == 500
    assert len({*chosen, *following}) == 3


async def test_tens_of_thousands_of_meters_are_one_quick_change(pool: Pool) -> None:
    async with asyncio.timeout(20), catalog_change(pool) as change:
        organization_id, site_id = await add_plant(change)
        await change.add_devices(organization_id, [NewDevice(f"BR-{number}", "bridge") for number in range(500)])
        ids = await change.add_meters(organization_id, [meter(f"M{number}", site_id) for number in range(50_000)])
        await change.attach_bridges([BridgeLink(f"BR-{place % 500}", one) for place, one in enumerate(ids)])
    assert await pool.fetchval("SELECT count(*) FROM bridge_attachment") == 50_000
    found = await meters(pool, organization_id)
    assert [one.name for one in found[:2]] == ["M0", "M1"]
    assert len(found) == 50_000


async def organization_of(pool: Pool) -> int:
    async with catalog_change(pool) as change:
        organization_id, _site_id = await add_plant(change)
    return organization_id


async def create(pool: Pool, settings: JobSettings = HOURLY, starts_at: datetime | None = None) -> Job:
    return await create_job(pool, NewJob(await organization_of(pool), settings, starts_at), NOW)


async def test_a_job_starts_now_by_the_wall_clock_until_something_has_arrived(pool: Pool) -> None:
    job = await create(pool)
    assert (job.starts_at, job.version, job.state, job.settings) == (NOW, 1, "active", HOURLY)


async def test_a_job_starts_now_by_the_arrival_of_readings(pool: Pool) -> None:
    clock = datetime(2020, 1, 1, 3, 4, tzinfo=UTC)
    await set_clock(pool, clock)
    assert (await create(pool)).starts_at == clock


async def test_every_legal_pair_is_stored(pool: Pool) -> None:
    organization_id = await organization_of(pool)
    pairs = [(often, fine) for often, all_fine in ALLOWED_RESOLUTIONS_MINUTES.items() for fine in all_fine]
    assert len(pairs) == 10
    for frequency, resolution in pairs:
        settings = replace(HOURLY, frequency_minutes=frequency, resolution_minutes=resolution)
        await create_job(pool, NewJob(organization_id, settings), NOW)
    stored = {
        (job.settings.frequency_minutes, job.settings.resolution_minutes)
        for job in await list_jobs(pool, organization_id)
    }
    assert stored == set(pairs)


async def test_sites_must_be_the_organizations_own(pool: Pool) -> None:
    organization_id = await organization_of(pool)
    async with catalog_change(pool) as change:
        _other, foreign_site = await add_plant(change, "Other")
    settings = replace(HOURLY, site_ids=(foreign_site,))
    with pytest.raises(UserError, match=f"no site with the id {foreign_site}"):
        await create_job(pool, NewJob(organization_id, settings), NOW)
    assert await list_jobs(pool, organization_id) == []


@pytest.mark.parametrize(
    ("clock", "frequency", "resolution", "effective_from"),
    [
        (datetime(2020, 1, 1, 3, 4, tzinfo=UTC), 60, 15, datetime(2020, 1, 1, 4, tzinfo=UTC)),
        (datetime(2020, 1, 1, 3, 0, tzinfo=UTC), 60, 15, datetime(2020, 1, 1, 3, tzinfo=UTC)),
        (datetime(2020, 1, 1, 3, 4, tzinfo=UTC), 5, 5, datetime(2020, 1, 1, 4, tzinfo=UTC)),
        (datetime(2020, 1, 1, 3, 4, tzinfo=UTC), 1440, 60, datetime(2020, 1, 2, tzinfo=UTC)),
    ],
)
async def test_an_edit_holds_from_the_next_slot_that_both_frequencies_begin(
    pool: Pool, clock: datetime, frequency: int, resolution: int, effective_from: datetime
) -> None:
    before = await create(pool, starts_at=datetime(2020, 1, 1, tzinfo=UTC))
    await set_clock(pool, clock)
    settings = replace(HOURLY, frequency_minutes=frequency, resolution_minutes=resolution)
    after = await edit_job(pool, before.organization_id, before.job_id, settings, NOW)
    assert (after.version, after.effective_from, after.settings) == (2, effective_from, settings)
    again = await edit_job(pool, before.organization_id, before.job_id, settings, NOW)
    assert again.version == 2


async def test_an_edit_before_anything_arrived_holds_from_the_start(pool: Pool) -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    job = await create(pool, starts_at=start)
    after = await edit_job(pool, job.organization_id, job.job_id, replace(HOURLY, name="Other"), NOW)
    assert after.effective_from == start


async def test_pause_and_resume(pool: Pool) -> None:
    await set_clock(pool, datetime(2020, 1, 1, tzinfo=UTC))
    job = await create(pool)
    key = (job.organization_id, job.job_id)
    assert await resume_job(pool, *key, NOW) is False
    assert await pause_job(pool, *key) is True
    assert await pause_job(pool, *key) is False
    assert (await find_job(pool, *key)).state == "paused"
    assert await resume_job(pool, *key, NOW) is True
    # At the same reading of the platform's clock: the pause goes on instead of breaking its key.
    assert await pause_job(pool, *key) is True
    await set_clock(pool, datetime(2020, 1, 1, 5, tzinfo=UTC))
    assert await resume_job(pool, *key, NOW) is True
    pauses = await pool.fetch("SELECT paused_from, resumed_from FROM export_job_pause")
    assert [tuple(row) for row in pauses] == [
        (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, 5, tzinfo=UTC)),
    ]
    assert await pool.fetchval("SELECT resumed_at FROM export_job") == NOW
    assert (await find_job(pool, *key)).state == "active"


@pytest.mark.parametrize("resumed_after", [timedelta(minutes=1), timedelta(), -timedelta(minutes=1)])
async def test_resuming_lifts_a_stop_of_delivery(pool: Pool, resumed_after: timedelta) -> None:
    """Even where the clock of the command is behind the clock of delivery's host."""
    job = await create(pool)
    key = (job.organization_id, job.job_id)
    await pool.execute(
        """
        INSERT INTO export_job_progress (organization_id, job_id, transport, destination, seen_version,
                                         next_slot_start, next_resolution_minutes, stopped_at, stopped_reason)
        VALUES ($1, $2, 'https', 'example.org:443', 1, $3, 60, $3, 'http_410')
        """,
        *key,
        NOW,
    )
    stopped = await find_job(pool, *key)
    assert (stopped.state, stopped.stopped_reason) == ("stopped", "http_410")
    assert await resume_job(pool, *key, NOW + resumed_after) is True
    lifted = await find_job(pool, *key)
    assert (lifted.state, lifted.stopped_reason) == ("active", None)


async def test_a_deleted_job_is_gone_and_foreign_jobs_do_not_exist(pool: Pool) -> None:
    job = await create(pool)
    async with catalog_change(pool) as change:
        other = await change.organization("Other")
    for act in (find_job(pool, other, job.job_id), pause_job(pool, other, job.job_id)):
        with pytest.raises(UserError, match=f"there is no job {job.job_id}"):
            await act
    await delete_job(pool, job.organization_id, job.job_id, NOW)
    assert await list_jobs(pool, job.organization_id) == []
    with pytest.raises(UserError, match="there is no job"):
        await delete_job(pool, job.organization_id, job.job_id, NOW)
    async with transaction(pool) as connection:
        assert await connection.fetchval("SELECT deleted_at FROM export_job") == NOW


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/in", "must begin with https://"),
        ("example.org", "must begin with https://"),
        ("https://", "names no host"),
        ("https://a b/", "names no host"),
        ("https://me:secret@example.org/", "must not hold a user name or password"),
        ("https://example.org:99999/", "cannot be understood"),
        ("https://example.org/#x", "behind #"),
    ],
)
def test_wrong_urls_say_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        https_settings(url, None)
    assert "secret" not in str(caught.value)


def test_a_ca_file_must_hold_certificates() -> None:
    with pytest.raises(UserError, match="BEGIN CERTIFICATE"):
        https_settings("https://example.org/in", "not a certificate")
