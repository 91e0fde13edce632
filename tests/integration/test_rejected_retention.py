"""What was refused is kept as long as the setting says, by the clock of arrivals, on a real PostgreSQL."""

from datetime import timedelta
from typing import Any

import pytest

from services.ingest import rejected_retention
from services.ingest.day_partitions import DayKeeper
from services.ingest.settings import IngestSettings
from services.platform.metrics import REGISTRY
from services.platform.postgres import Pool
from services.platform.settings import load
from tests.integration.test_day_partitions import KEEP, NOW, TOPIC, some_days

DAY = timedelta(days=1)
OTHER = "other.readings.logger"
OFFSETS = "SELECT array_agg(source_offset ORDER BY source_offset) FROM {}"


async def refuse(pool: Pool, topic: str, offset: int, days_ago: float) -> None:
    await pool.execute(
        "INSERT INTO rejected_reading (topic, partition, source_offset, source_place, arrived_at, reason, detail, "
        "original) VALUES ($1, 0, $2, 0, $3, 'unknown_device', 'who?', '')",
        *(topic, offset, NOW - days_ago * DAY),
    )
    await pool.execute("INSERT INTO rejected_replay VALUES ($1, 0, $2, 0, now(), 'me')", topic, offset)


def dropped() -> float:
    return REGISTRY.get_sample_value("meterpost_ingest_rejected_dropped_total") or 0


def test_what_the_settings_say_unless_told_otherwise() -> None:
    assert load(IngestSettings).keep_rejected == 92 * DAY
    told: dict[str, Any] = {"rejected_retention_days": 0}
    assert IngestSettings(**told).keep_rejected is None


async def test_what_was_refused_long_ago_goes_with_its_marks_a_few_at_a_time(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected_retention, "ROWS_AT_ONCE", 2)
    await some_days(pool)  # one partition's clock is at NOW, the other's 20 hours ahead
    for offset, days_ago in enumerate((13, 12, 11, 10.01, 10, 9, -0.5)):
        await refuse(pool, TOPIC, offset, days_ago)
    await refuse(pool, OTHER, 7, 13)
    before = dropped()
    await DayKeeper(pool, [TOPIC], KEEP).look()
    assert await pool.fetchval("SELECT count(*) FROM rejected_reading") == 8, "for ever"
    await DayKeeper(pool, [TOPIC], KEEP, 10 * DAY).look()
    for table in ("rejected_reading", "rejected_replay"):
        assert await pool.fetchval(OFFSETS.format(table)) == [4, 5, 6, 7], "of other topics nothing is known"
    assert dropped() - before == 4
    await DayKeeper(pool, [TOPIC], KEEP, 10 * DAY).look()
    assert dropped() - before == 4


async def test_a_partition_that_was_not_heard_holds_everything(pool: Pool) -> None:
    await some_days(pool)
    await refuse(pool, TOPIC, 0, 400)
    await pool.execute("UPDATE ingest_progress SET watermark = NULL WHERE partition = 1")
    await DayKeeper(pool, [TOPIC], KEEP, 10 * DAY).look()
    assert await pool.fetchval("SELECT count(*) FROM rejected_reading") == 1
