"""Records that kill whoever judges them: found by processes of their own, set aside, and nothing else is lost."""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.ingest import batch, trial
from services.ingest.app import main
from services.ingest.batch import Position
from services.ingest.settings import IngestSettings
from services.ingest.store import IngestStore
from services.ingest.trial import deadly_records
from services.platform.errors import OperatorNeeded
from services.platform.health import Health
from services.platform.kafka import Partition, PartitionBatch, Record, acknowledged
from services.platform.postgres import connect_pool
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.integration.test_ingest import one_reading_from
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DEADLY = {"METERPOST_CRASH_ON": "kills its reader"}
PARTITION: Partition = (READINGS_LOGGER, 0)
MOST_DEATHS = 3


def record(offset: int, value: bytes) -> Record:
    return Record(offset, 0, b"", value, is_tick=False)


async def test_a_record_that_kills_its_reader_is_set_aside_and_its_neighbours_are_stored(platform: Platform) -> None:
    """Started again under the same name, as in containers and by most supervisors, it dies at most three times."""
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    sound = [("LG-0", upload("LG-0", [pulses(1, T0 - number * MINUTE, number)])) for number in range(20)]
    poison = ("LG-0", b'{"kills its reader": 1}')
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(platform.topic(READINGS_LOGGER), value, key=key.encode(), created_at=T0 + MINUTE)
                for key, value in [*sound[:10], poison, *sound[10:]]
            ]
        )
    deaths = 0
    environment = {**DEADLY, "METERPOST_SESSION_SECONDS": "2", "METERPOST_INSTANCE": "ingest"}
    service = platform.start("services.ingest", environment=environment)

    async def stored() -> bool:
        nonlocal deaths, service
        if not service.is_running:
            assert service.exit_code == -signal.SIGKILL
            deaths += 1
            service = platform.start("services.ingest", environment=environment)
        return bool(await platform.value("SELECT sum(stored_count) = 20 FROM ingest_progress"))

    await eventually_async(stored, 90, because="everything but the deadly record is stored")
    assert 1 <= deaths <= MOST_DEATHS
    [refused] = await platform.fetch("SELECT reason, detail, original, source_offset FROM rejected_reading")
    assert (refused["reason"], refused["original"], refused["source_offset"]) == ("malformed", poison[1], 10)
    assert "ended the process" in refused["detail"]
    assert await platform.value("SELECT count(*) FROM reading") == 20
    assert await platform.value("SELECT sum(refused_count) FROM ingest_progress") == 1


async def test_only_the_deadly_ones_of_a_batch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*next(iter(DEADLY.items())))
    values = [b"{}", b"this kills its reader", b"\xff" * 900_000, b"[" * 100_000, b"and kills its reader too", b""]
    records = [record(100 + number, value) for number, value in enumerate(values)]
    batches = [PartitionBatch(*PARTITION, records[:3]), PartitionBatch(READINGS_BRIDGE, 1, records[3:])]
    rounds = []
    found = await deadly_records(batches, lambda: rounds.append(1))
    assert found == {PARTITION: frozenset({101}), (READINGS_BRIDGE, 1): frozenset({104})}
    assert len(rounds) == 7  # three deaths of each, and the rest


async def test_what_any_process_survives_is_not_deadly() -> None:
    assert DEADLY.keys().isdisjoint(os.environ)
    one = PartitionBatch(*PARTITION, [record(0, b"this kills its reader"), record(1, b"[" * 100_000)])
    assert await deadly_records([one], lambda: None) == {}


@pytest.mark.parametrize(
    ("error", "is_released"), [(RuntimeError("what nobody expected"), False), (OperatorNeeded("a decision"), True)]
)
async def test_who_ends_by_an_error_that_nobody_expected_counts_as_vanished(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, error: Exception, is_released: bool
) -> None:
    def raise_it(_payload: bytes) -> None:
        raise error

    monkeypatch.setattr(batch, "DEADLY", b"anything")
    monkeypatch.setattr(batch, "crash_on", raise_it)
    await platform.declare_topics(partitions=1)
    async with platform.producer() as producer:
        await acknowledged([await producer.enqueue(platform.topic(READINGS_LOGGER), b"{}", created_at=T0)])
    settings = IngestSettings.model_validate(
        {
            "kafka_bootstrap_servers": platform.bootstrap_servers,
            "database_url": platform.database_url,
            "topic_prefix": platform.prefix,
            "instance": "me",
        }
    )
    with pytest.raises(type(error), match=str(error)):
        await main(settings, Health(), asyncio.Event())
    rows = await platform.fetch("SELECT is_released FROM ingest_progress")
    assert [row["is_released"] for row in rows] == [is_released] * 2


async def test_owners_count_as_vanished_when_they_neither_stored_anything_nor_let_go(database_url: str) -> None:
    pool = await connect_pool(database_url, max_size=2)
    try:
        store = IngestStore(pool)

        position: Position | None = None

        async def claimed_by(owner: str, *, remembers: bool = False) -> int:
            nonlocal position
            held = {PARTITION: position} if remembers and position is not None else {}
            position = (await store.claim({PARTITION: 0}, owner, held))[PARTITION]
            return position.crash_count

        assert [await claimed_by("first"), await claimed_by("second"), await claimed_by("third")] == [0, 1, 2]
        assert await claimed_by("third", remembers=True) == 2  # the group was rearranged; it has proved nothing yet
        assert await claimed_by("third") == 3  # another process of that name, which remembers nothing
        assert position is not None
        await store.store(*await one_reading_from(position))
        assert await claimed_by("fourth") == 0  # the third got on
        held = position
        assert await claimed_by("fifth") == 1
        await store.release({PARTITION: held})  # too late: the partition is not the fourth's any more
        assert await claimed_by("sixth") == 2
        await store.release({PARTITION: position})
        assert await claimed_by("seventh") == 2  # the sixth did not die of it, nor did it get past it
    finally:
        await pool.close()


async def test_where_no_process_can_be_started_nothing_is_known_to_be_deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    one = PartitionBatch(*PARTITION, [record(0, b"{}")])
    assert await deadly_records([one], lambda: None) == {}


async def test_a_record_that_keeps_its_reader_for_too_long_is_deadly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process that hangs takes nothing from its input either."""
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\necho start\necho 0\nexec sleep 60\n", encoding="ascii")
    hanging.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hanging))
    monkeypatch.setattr(trial, "SECONDS_A_RECORD", 0.3)
    one = PartitionBatch(*PARTITION, [record(8, b"x" * 900_000)])
    assert await deadly_records([one], lambda: None) == {PARTITION: frozenset({8})}
