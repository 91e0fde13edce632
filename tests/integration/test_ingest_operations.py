"""What operators see of ingest and decide about it, on the real broker and database."""

import os
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from services.local.processes import ChildProcess
from services.platform.kafka import acknowledged
from services.platform.topics import READINGS_LOGGER
from tests.support.command import Meterpost
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def meterpost(platform: Platform) -> Meterpost:
    names = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "TOPIC_PREFIX")
    variables = {f"METERPOST_{name}": platform.environment[f"METERPOST_{name}"] for name in names}
    return Meterpost(platform.folder, variables)


async def publish(platform: Platform, values: list[tuple[bytes, datetime]], *, partition: int = 0) -> None:
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(
                    platform.topic(READINGS_LOGGER), value, key=b"LG-0", partition=partition, created_at=arrival
                )
                for value, arrival in values
            ]
        )


def minute_upload(number: int, device: str = "LG-0") -> tuple[bytes, datetime]:
    return upload(device, [pulses(1, T0 + number * MINUTE, number)]), T0 + (number + 1) * MINUTE


def of_partition(status: dict[str, Any], name: str, partition: int = 0) -> dict[str, Any]:
    [found] = [one for one in status["partitions"] if one["topic"].endswith(name) and one["partition"] == partition]
    return dict(found)


async def stops_for_the_operator(service: ChildProcess) -> None:
    await eventually_async(lambda: not service.is_running, 30, because="ingest stops")
    assert service.exit_code == 4


async def test_status_tells_position_lag_and_watermark_of_every_partition(
    platform: Platform, meterpost: Meterpost
) -> None:
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    before = meterpost.json("ingest", "status")
    assert {one["state"] for one in before["partitions"]} == {"new"}
    assert "not claimed yet" in meterpost.ok("ingest", "status")

    await publish(platform, [minute_upload(0), minute_upload(1, "LG-404")])
    service = platform.start("services.ingest")
    await platform.ingested()
    service.stop(6)
    await publish(platform, [minute_upload(number) for number in range(2, 5)])
    status = meterpost.json("ingest", "status")
    assert len(status["partitions"]) == 4
    read = of_partition(status, READINGS_LOGGER)
    expected = {"state": "read", "position": 2, "end_offset": 5, "lag_records": 3, "lag_seconds": 180.0, "epoch": 1}
    assert expected.items() <= read.items()
    assert (read["stored_count"], read["refused_count"]) == (1, 1)
    assert (read["owner"], read["watermark"]) == (service.name, "2026-11-20T10:02:00Z")
    assert of_partition(status, READINGS_LOGGER, 1)["lag_seconds"] == 0.0
    assert status["totals"] | {"lag_records": 3, "stored_count": 1, "refused_count": 1} == status["totals"]
    assert status["totals"]["watermark"] is None
    shown = meterpost.ok("ingest", "status")
    assert "0:03:00" in shown
    assert "4 partitions" in shown


async def test_status_says_what_is_away(platform: Platform, meterpost: Meterpost) -> None:
    nobody = "127.0.0.1:1"
    assert "Kafka does not answer" in meterpost.refused("ingest", "status", "--kafka", nobody, code=1)
    away = f"postgresql://nobody@{nobody}/nothing"
    assert "PostgreSQL does not answer" in meterpost.refused("ingest", "status", "--database", away, code=1)
    assert "UnknownTopic" in meterpost.refused("ingest", "status", code=1)


async def refused_readings(platform: Platform) -> None:
    """Store two readings, refuse four: two unknown inputs of a record, an unknown device, and what is no JSON."""
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    mixed = upload("LG-0", [pulses(1, T0, 5), pulses(8, T0, 6), pulses(2, T0, 7), pulses(9, T0, 8)])
    records = [(mixed, T0 + MINUTE), minute_upload(2, "LG-404"), (b"\xff no JSON", T0 + 4 * MINUTE)]
    await publish(platform, records)
    platform.start("services.ingest")
    await platform.ingested()


async def test_refused_readings_are_listed_counted_and_shown(platform: Platform, meterpost: Meterpost) -> None:
    await refused_readings(platform)
    topic = platform.topic(READINGS_LOGGER)
    everything = meterpost.json("rejected", "list")
    assert everything["counts"] == {"unknown_input": 2, "malformed": 1, "unknown_device": 1}
    assert [one["name"].removeprefix(topic) for one in everything["rejected"]] == [
        "/0/2/-1",
        "/0/1/0",
        "/0/0/1",
        "/0/0/3",
    ]

    def matching(*filters: str) -> int:
        return len(meterpost.json("rejected", "list", *filters)["rejected"])

    assert matching("--reason", "unknown_input") == 2
    assert matching("--device", "LG-404") == 1
    assert matching("--since", "2026-11-20T10:03:00Z") == 2
    assert matching("--until", "2026-11-20T10:03:00Z") == 2
    assert matching("--topic", "readings.bridge") == 0
    assert matching("--limit", "1") == 1
    assert "4" in meterpost.ok("rejected", "list", "--counts").splitlines()[-1]
    assert "unknown_device" in meterpost.ok("rejected", "list")

    shown = meterpost.ok("rejected", "show", f"{topic}/0/0/1")
    assert '"pulses":6' in shown
    assert "reading 1 of its record" in shown
    assert "ff 20 6e 6f" in meterpost.ok("rejected", "show", f"{topic}/0/2/-1")
    assert meterpost.json("rejected", "show", f"{topic}/0/2/-1")["original_hex"] == b"\xff no JSON".hex()
    assert "no refused reading is named" in meterpost.refused("rejected", "show", f"{topic}/0/99/0")
    assert "topic/partition/offset/place" in meterpost.refused("rejected", "show", "nonsense")
    assert "nothing is ever refused as" in meterpost.refused("rejected", "list", "--reason", "boredom")


async def test_refused_readings_are_replayed_once_when_the_registry_knows_better(
    platform: Platform, meterpost: Meterpost
) -> None:
    await refused_readings(platform)
    assert "say which" in meterpost.refused("rejected", "replay")
    await platform.fetch("INSERT INTO meter VALUES (99, 1, 'Electricity', 'electricity', NULL, 2)")
    await platform.fetch("INSERT INTO input_attachment VALUES ('LG-0', 8, '-infinity', 2, 99)")
    await platform.fetch("UPDATE catalog_revision SET revision = 2")
    rehearsed = meterpost.json("rejected", "replay", "--device", "LG-0", "--dry-run")
    assert (rehearsed["readings"], rehearsed["records"]) == (2, 1)
    assert (rehearsed["would_be_stored"], rehearsed["would_be_refused"]) == (1, 1)
    assert rehearsed["first_refused"][0]["name"].endswith("/0/0/3")
    assert "Nothing was sent" in meterpost.ok("rejected", "replay", "--all", "--dry-run")
    assert await platform.value("SELECT count(*) FROM rejected_replay") == 0

    clock = await platform.value("SELECT max(watermark) FROM ingest_progress")
    sent = meterpost.json("rejected", "replay", "--device", "LG-0")
    assert sent == {"records": 1, "readings": 2, "by_reason": {"unknown_input": 2}}
    await platform.ingested()
    assert await platform.value("SELECT value FROM reading WHERE meter_id = 99") == 6
    assert await platform.value("SELECT arrived_at FROM reading WHERE meter_id = 99") == clock
    assert await platform.value("SELECT max(watermark) FROM ingest_progress") == clock
    # The unknown input is refused a second time, under a new name; what was sent stays listed, marked.
    assert meterpost.json("rejected", "list", "--device", "LG-0")["counts"] == {"unknown_input": 3}
    first = meterpost.json("rejected", "show", f"{platform.topic(READINGS_LOGGER)}/0/0/1")
    assert first["replayed_at"] is not None
    assert "@" in first["replayed_by"]

    everything_else = meterpost.json("rejected", "replay", "--all")
    assert everything_else["by_reason"] == {"unknown_input": 1, "unknown_device": 1, "malformed": 1}
    await platform.ingested()
    last = await platform.fetch(
        "SELECT original FROM rejected_reading WHERE reason = 'malformed' ORDER BY source_offset"
    )
    assert [row["original"] for row in last] == [b"\xff no JSON"] * 2
    for _record in range(2):
        meterpost.ok("rejected", "replay", "--reason", "malformed")
        await platform.ingested()
    once_more = meterpost.json(
        "rejected", "replay", "--reason", "malformed", "--until", "2026-11-20T10:05:00Z", "--again"
    )
    assert once_more["readings"] == 4
    actions = await platform.fetch("SELECT action FROM operator_action")
    assert [row["action"] for row in actions] == ["rejected_replay"] * 5
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await platform.fetch("DELETE FROM operator_action")


async def test_records_removed_before_they_were_read_wait_for_the_operator(
    platform: Platform, meterpost: Meterpost
) -> None:
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    logger = platform.topic(READINGS_LOGGER)
    await publish(platform, [minute_upload(0), minute_upload(1)])
    service = platform.start("services.ingest")
    await platform.ingested()
    assert "found no gap" in meterpost.refused("ingest", "accept-gap", f"{logger}/0", "--reason", "none", "--yes")
    service.stop(6)
    await publish(platform, [minute_upload(number) for number in range(2, 10)])
    async with platform.admin() as admin:
        await admin.delete_records({(logger, 0): 5})
    for _start in range(2):
        stopped = platform.start("services.ingest")
        await stops_for_the_operator(stopped)
        assert f"meterpost ingest accept-gap {logger}/0" in stopped.log_tail()
    assert await platform.value("SELECT count(*) FROM ingest_gap WHERE (from_offset, to_offset) = (2, 5)") == 1
    status = meterpost.json("ingest", "status")
    assert of_partition(status, READINGS_LOGGER)["state"] == "gap"
    assert "GAP in" in meterpost.ok("ingest", "status")
    async with platform.admin() as admin:
        await admin.delete_records({(logger, 0): 6})

    accept = ("ingest", "accept-gap", "readings.logger/0", "--reason", "retention too short")
    assert "add --yes" in meterpost.refused(*accept)
    assert "is no topic of readings" in meterpost.refused("ingest", "accept-gap", "nothing/0", "--reason", "x")
    assert "ingest goes on at 6" in meterpost.ok(*accept, "--yes")
    service = platform.start("services.ingest")
    await platform.ingested()
    assert await platform.value("SELECT array_agg(value ORDER BY value) FROM reading") == [0, 1, 6, 7, 8, 9]
    status = meterpost.json("ingest", "status")
    partition = of_partition(status, READINGS_LOGGER)
    read = partition["stored_count"] + partition["refused_count"]
    assert partition["position"] == read + partition["accepted_gap_records"] == 10
    [gap] = await platform.fetch("SELECT accepted_by, reason, to_offset FROM ingest_gap")
    assert (gap["reason"], gap["to_offset"]) == ("retention too short", 6)
    [action] = await platform.fetch("SELECT acted_by, action, details::text FROM operator_action")
    assert (action["acted_by"], action["action"]) == (gap["accepted_by"], "accept_gap")
    assert "retention too short" in action["details"]


async def test_a_gap_that_opens_while_ingest_runs_begins_where_the_stored_ends(
    platform: Platform, meterpost: Meterpost
) -> None:
    """Retention overtakes a reader that is frozen; continued, it finds the gap itself."""
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    logger = platform.topic(READINGS_LOGGER)
    service = platform.start("services.ingest")
    await publish(platform, [minute_upload(0)])
    await platform.ingested()
    assert service.pid is not None
    os.kill(service.pid, signal.SIGSTOP)
    await publish(platform, [minute_upload(1)])  # answers the fetch that is under way: the others need one more
    await publish(platform, [minute_upload(number) for number in range(2, 6)])
    async with platform.admin() as admin:
        await admin.delete_records({(logger, 0): 4})
    os.kill(service.pid, signal.SIGCONT)
    await stops_for_the_operator(service)
    [gap] = await platform.fetch("SELECT from_offset, to_offset FROM ingest_gap")
    [position] = await platform.fetch("SELECT next_offset FROM ingest_progress WHERE topic = $1", logger)
    assert gap["from_offset"] == position["next_offset"] < gap["to_offset"] == 4


async def test_records_removed_before_the_first_was_stored_are_a_gap_too(
    platform: Platform, meterpost: Meterpost
) -> None:
    """What the retention removed before ingest first came was never its own; what came afterwards was."""
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    logger = platform.topic(READINGS_LOGGER)
    await publish(platform, [minute_upload(number) for number in range(3)])
    async with platform.admin() as admin:
        await admin.delete_records({(logger, 0): 3})
    first = platform.start("services.ingest")
    await eventually_async(
        lambda: platform.value("SELECT count(*) = 2 FROM ingest_progress"), 30, because="the partitions are claimed"
    )
    first.stop(6)
    assert first.exit_code == 0
    await publish(platform, [minute_upload(number) for number in range(3, 8)])
    async with platform.admin() as admin:
        await admin.delete_records({(logger, 0): 5})
    stopped = platform.start("services.ingest")
    await stops_for_the_operator(stopped)
    assert of_partition(meterpost.json("ingest", "status"), READINGS_LOGGER)["state"] == "gap"
    [gap] = await platform.fetch("SELECT from_offset, to_offset FROM ingest_gap")
    assert gap == {"from_offset": 3, "to_offset": 5}
    meterpost.ok("ingest", "accept-gap", "readings.logger/0", "--reason", "retention too short", "--yes")
    platform.start("services.ingest")
    await platform.ingested()
    assert await platform.value("SELECT array_agg(value ORDER BY value) FROM reading") == [5, 6, 7]


def wrong_uploads(number: int, count: int) -> tuple[bytes, datetime]:
    return upload("LG-404", [pulses(place, T0, 1) for place in range(count)]), T0 + number * MINUTE


async def test_nearly_everything_refused_stops_ingest_before_it_is_stored(
    platform: Platform, meterpost: Meterpost
) -> None:
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    await publish(platform, [minute_upload(0)])
    await publish(platform, [wrong_uploads(1, 900), minute_upload(2)])
    service = platform.start("services.ingest")
    await platform.ingested()  # fewer than a thousand readings never stop it
    assert service.is_running
    await publish(platform, [wrong_uploads(2, 900)], partition=1)
    await stops_for_the_operator(service)
    log = service.log_tail()
    assert "900 unknown_device in this batch" in log
    assert "meterpost ingest resume-refusing" in log
    assert await platform.value("SELECT count(*) FROM rejected_reading") == 900
    again = platform.start("services.ingest")
    await stops_for_the_operator(again)
    assert await platform.value("SELECT count(*) FROM rejected_reading") == 900
    assert "REFUSED of" in meterpost.ok("ingest", "status")

    resume = ("ingest", "resume-refusing", "readings.logger", "--reason", "a customer left")
    assert "--for is 'ever'" in meterpost.refused(*resume, "--for", "ever")
    assert "do not stop ingest until" in meterpost.ok(*resume, "--for", "10m")
    platform.start("services.ingest")
    await platform.ingested()
    assert await platform.value("SELECT count(*) FROM rejected_reading") == 1800
    [allowed] = meterpost.json("ingest", "status")["refusals_allowed"]
    assert allowed["reason"] == "a customer left"
    assert await platform.value("SELECT array_agg(action) FROM operator_action") == ["resume_refusing"]


async def test_nearly_everything_refused_is_no_matter_once_the_cause_is_mended(platform: Platform) -> None:
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    await publish(platform, [wrong_uploads(1, 600), wrong_uploads(2, 600)])
    await stops_for_the_operator(platform.start("services.ingest"))
    assert await platform.value("SELECT count(*) FROM rejected_reading") == 0
    await platform.fetch("INSERT INTO device VALUES ('LG-404', 1, 'logger', 2)")
    await platform.fetch(
        "INSERT INTO input_attachment SELECT 'LG-404', number, '-infinity', 2, 1 FROM generate_series(0, 599) number"
    )
    await platform.fetch("UPDATE catalog_revision SET revision = 2")
    platform.start("services.ingest")
    await platform.ingested()
    assert await platform.value("SELECT sum(stored_count) FROM ingest_progress") == 1200


async def test_one_partition_full_of_rubbish_stops_nobody(platform: Platform) -> None:
    await platform.declare_topics(partitions=3)
    await seed_catalog(platform.database_url)
    service = platform.start("services.ingest")
    await publish(platform, [wrong_uploads(number, 900) for number in range(4)], partition=2)
    await publish(platform, [minute_upload(5)])
    await platform.ingested()
    assert await platform.value("SELECT count(*) FROM rejected_reading") == 3600
    assert service.is_running
