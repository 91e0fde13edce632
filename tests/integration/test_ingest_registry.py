"""The registry in ingest's memory: it follows the catalog, and whoever is not in it costs one look a batch."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from services.core.registry import RegistryChange
from services.ingest import app, loop
from services.ingest.batch import Batch
from services.ingest.settings import IngestSettings
from services.ingest.store import IngestStore, Turn, at_once
from services.ingest.write_plan import EncodedPlan
from services.platform.health import Health
from services.platform.kafka import acknowledged
from services.platform.settings import load
from services.platform.topics import READINGS_LOGGER
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
STORM = 3000


class CountingStore(IngestStore):
    """The store, which counts how often the registry is asked for, and the batches."""

    looks = changes = batches = 0

    async def registry_revision(self) -> int:
        CountingStore.looks += 1
        return await super().registry_revision()

    async def registry_change(self, known_revision: int, never_attached: Sequence[str] = ()) -> RegistryChange:
        change = await super().registry_change(known_revision, never_attached)
        CountingStore.changes += 1
        return change

    async def store(self, batch: Batch, plan: EncodedPlan, turn: Turn = at_once) -> None:
        await super().store(batch, plan, turn)
        CountingStore.batches += 1


@asynccontextmanager
async def counted_ingest(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[type[CountingStore]]:
    """Run ingest inside the test, with a store that counts."""
    await platform.declare_topics()
    await seed_catalog(platform.database_url)
    monkeypatch.setattr(app, "IngestStore", CountingStore)
    CountingStore.looks = CountingStore.changes = CountingStore.batches = 0
    for name, value in platform.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("METERPOST_REFUSAL_STOP_PERCENT", "100")  # the storm is the point
    settings = load(IngestSettings)
    stopping = asyncio.Event()
    running = asyncio.create_task(app.main(settings, Health(), stopping))
    try:
        await eventually_async(lambda: CountingStore.changes == 1, 20, because="the registry is loaded")
        yield CountingStore
    finally:
        stopping.set()
        await running


async def publish(platform: Platform, devices: list[str]) -> None:
    """Publish one reading of input 1 of each device."""
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(
                    platform.topic(READINGS_LOGGER),
                    upload(device, [pulses(1, T0, 1)]),
                    key=device.encode(),
                    created_at=T0 + MINUTE,
                )
                for device in devices
            ]
        )


async def test_a_storm_of_unknown_devices_is_no_storm_of_queries(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a miss looks here, once a batch; and a device that was registered a moment ago is no longer unknown."""
    monkeypatch.setattr(loop, "REGISTRY_LOOK_SECONDS", 3600.0)
    async with counted_ingest(platform, monkeypatch) as counted:
        await publish(platform, ["LG-0"])
        await platform.ingested()
        assert counted.looks == 1, "only the first look"
        await publish(platform, [f"XX-{number}" for number in range(STORM)])
        await platform.ingested()
        # The last batch is counted a moment after its commit can be seen.
        assert 1 < counted.looks <= counted.batches + 1
        assert counted.looks < STORM / 30
        assert counted.changes == 1
        looks = counted.looks
        await platform.fetch(
            "WITH now AS (UPDATE catalog_revision SET revision = 2), "
            "device AS (INSERT INTO device VALUES ('XX-1', 1, 'logger', 2)) "
            "INSERT INTO input_attachment VALUES ('XX-1', 1, '-infinity', 2, 7)"
        )
        await publish(platform, ["XX-1", "XX-1", "LG-0"])
        await platform.ingested()
        assert counted.changes == 2
        assert counted.looks - looks <= 2
    query = "SELECT sum(stored_count)::integer AS stored, sum(refused_count)::integer AS refused FROM ingest_progress"
    assert await platform.fetch(query) == [{"stored": 4, "refused": STORM}]


@pytest.mark.alone
async def test_a_change_of_the_registry_is_followed_within_two_seconds(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is missed here: an input moves to another meter, and each of its readings goes to the right one."""
    async with counted_ingest(platform, monkeypatch) as counted:
        await publish(platform, ["LG-0"])
        await platform.ingested()
        await platform.fetch(
            "WITH now AS (UPDATE catalog_revision SET revision = 2) "
            "INSERT INTO input_attachment VALUES ('LG-0', 1, $1, 2, 9)",
            T0 - MINUTE,
        )
        changed = time.monotonic()
        await eventually_async(lambda: counted.changes == 2, 10, because="the change is followed")
        assert time.monotonic() - changed < 2
        await publish(platform, ["LG-0"])
        await platform.ingested()
    meters = await platform.fetch("SELECT meter_id FROM reading ORDER BY source_offset")
    assert [row["meter_id"] for row in meters] == [1, 9]


async def test_a_device_that_was_removed_is_unknown_and_known_when_it_comes_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a device that was never attached can be removed; one beside it stays what it is."""
    async with counted_ingest(platform, monkeypatch) as counted:

        async def change(statement: str) -> None:
            changes = counted.changes
            await platform.fetch(f"WITH now AS (UPDATE catalog_revision SET revision = revision + 1) {statement}")
            await eventually_async(lambda: counted.changes > changes, 10, because="the change is followed")
            await publish(platform, ["XX-1", "XX-2", "LG-0"])
            await platform.ingested()

        created = "INSERT INTO device SELECT {}, 1, 'logger', revision + 1 FROM catalog_revision"
        await change(created.format("unnest(ARRAY['XX-1', 'XX-2'])"))
        await change("DELETE FROM device WHERE device_id = 'XX-1'")
        await change(created.format("'XX-1'"))
        await change(
            "INSERT INTO input_attachment SELECT 'XX-1', 1, '-infinity', revision + 1, 7 FROM catalog_revision"
        )
    rejected = await platform.fetch("SELECT device_id, reason FROM rejected_reading ORDER BY source_offset")
    reasons = {device: [row["reason"] for row in rejected if row["device_id"] == device] for device in ("XX-1", "XX-2")}
    assert reasons == {
        "XX-1": ["unknown_input", "unknown_device", "unknown_input"],
        "XX-2": ["unknown_input"] * 4,
    }
    assert len(rejected) == 7
    stored = await platform.fetch("SELECT sum(stored_count)::integer AS stored FROM ingest_progress")
    assert stored == [{"stored": 5}]
