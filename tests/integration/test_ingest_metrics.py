"""What ingest tells machines of its partitions: under names that stay, and only of what it owns."""

from datetime import UTC, datetime, timedelta

import aiohttp
from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from services.local.ports import free_port
from services.platform.kafka import acknowledged
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.support.command import Meterpost
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.seed import pulses, seed_catalog, upload

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OF_A_PARTITION = (
    "meterpost_ingest_position",
    "meterpost_ingest_end_offset",
    "meterpost_ingest_lag_records",
    "meterpost_ingest_lag_seconds",
    "meterpost_ingest_watermark_seconds",
    "meterpost_ingest_epoch",
)
LABELS = ("topic", "partition", "owner", "state", "reason")
Labels = tuple[str, ...]


async def metrics(port: int) -> dict[str, dict[Labels, float]]:
    """Return every sample of a process, by name and the values of its LABELS; none before it serves."""
    found: dict[str, dict[Labels, float]] = {}
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            text = await answer.text()
    except aiohttp.ClientConnectionError:
        return found
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels[one] for one in LABELS if one in sample.labels)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def publish(platform: Platform, minutes: range) -> None:
    async with platform.producer() as producer:
        await acknowledged(
            [
                await producer.enqueue(
                    platform.topic(READINGS_LOGGER),
                    upload("LG-0", [pulses(1, T0 + minute * MINUTE, minute), pulses(9, T0 + minute * MINUTE, 1)]),
                    partition=0,
                    created_at=T0 + (minute + 1) * MINUTE,
                )
                for minute in minutes
            ]
        )


async def test_metrics_tell_what_status_tells_of_the_partitions_that_a_process_owns(platform: Platform) -> None:
    await platform.declare_topics(partitions=2)
    await seed_catalog(platform.database_url)
    logger, bridge = platform.topic(READINGS_LOGGER), platform.topic(READINGS_BRIDGE)
    await platform.fetch(
        "INSERT INTO ingest_gap (topic, partition, from_offset, to_offset) VALUES ($1, 1, 3, 10)", bridge
    )
    await publish(platform, range(3))
    port = free_port()
    first = platform.start("services.ingest", environment={"METERPOST_HEALTH_PORT": str(port)})
    await platform.ingested()

    async def told() -> bool:
        return (await metrics(port)).get("meterpost_ingest_lag_records", {}).get((logger, "0")) == 0

    await eventually_async(told, 20, because="the log's ends have been looked at")
    now = await metrics(port)
    place = (logger, "0")
    watermark = (T0 + 3 * MINUTE).timestamp()
    assert [now[name].get(place) for name in OF_A_PARTITION] == [3, 3, 0, 0, watermark, 1]
    every = {(topic, number) for topic in (logger, bridge) for number in ("0", "1")}
    assert now["meterpost_ingest_owner"] == {(*one, first.name): 1 for one in every}
    assert now["meterpost_ingest_refused_total"] == {("unknown_input",): 3}
    assert now["meterpost_ingest_gap_records"] == {(bridge, "1", "open"): 7}

    other_port = free_port()
    second = platform.start("services.ingest", environment={"METERPOST_HEALTH_PORT": str(other_port)})

    async def shared() -> bool:
        owners = [(await metrics(one)).get("meterpost_ingest_owner", {}) for one in (port, other_port)]
        mine, theirs = ({labels[:2] for labels in one} for one in owners)
        return bool(mine and theirs) and mine | theirs == every and not mine & theirs

    await eventually_async(shared, 30, because="each tells of its own partitions alone")
    assert second.is_running


async def test_the_lag_is_told_while_the_database_is_slow(platform: Platform) -> None:
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    port = free_port()
    quick = {"METERPOST_HEALTH_PORT": str(port), "METERPOST_DATABASE_TIMEOUT_SECONDS": "1"}
    platform.start("services.ingest", environment=quick)
    await publish(platform, range(1))
    await platform.ingested()
    await platform.fetch(
        "CREATE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END$$"
    )
    await platform.fetch(
        "CREATE TRIGGER full_disk BEFORE UPDATE ON ingest_progress FOR EACH ROW EXECUTE FUNCTION disk_is_full()"
    )
    await publish(platform, range(1, 6))

    async def lags() -> bool:
        now, place = await metrics(port), (platform.topic(READINGS_LOGGER), "0")
        names = ("meterpost_ingest_lag_records", "meterpost_ingest_lag_seconds")
        lag = [now.get(name, {}).get(place) for name in names]
        return lag == [5, 300]

    await eventually_async(lags, 20, because="five records and five minutes wait")


async def publish_in_a_transaction(platform: Platform, measured_at: datetime) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=platform.bootstrap_servers, transactional_id=platform.prefix + "one")
    await producer.start()
    try:
        async with producer.transaction():
            stamp = int((measured_at + MINUTE).timestamp()) * 1000
            value = upload("LG-0", [pulses(1, measured_at, 1)])
            await producer.send(platform.topic(READINGS_LOGGER), value, timestamp_ms=stamp)
    finally:
        await producer.stop()


async def test_a_publishers_transaction_hides_neither_status_nor_lag(platform: Platform) -> None:
    """The last offset of the log is the transaction's mark then, which no reader is handed."""
    await platform.declare_topics(partitions=1)
    await seed_catalog(platform.database_url)
    topic = platform.topic(READINGS_LOGGER)
    await publish_in_a_transaction(platform, T0)
    names = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "TOPIC_PREFIX")
    meterpost = Meterpost(
        platform.folder, {f"METERPOST_{one}": platform.environment[f"METERPOST_{one}"] for one in names}
    )
    platform.start("services.ingest")

    async def stored() -> bool:
        return bool(await platform.value("SELECT count(*) = 1 FROM reading"))

    await eventually_async(stored, 20, because="the reading is stored")
    [one] = [one for one in meterpost.json("ingest", "status")["partitions"] if one["topic"] == topic]
    assert (one["position"], one["end_offset"], one["stored_count"]) == (1, 2, 1)


async def test_a_partition_that_ends_in_a_transactions_mark_is_ticked_as_any_other(platform: Platform) -> None:
    await platform.declare_topics(partitions=1, replay=False)
    await seed_catalog(platform.database_url)
    platform.start("services.ingest")
    now = datetime.now(UTC).replace(second=0, microsecond=0)  # noqa: TID251 - the broker's clock sets the arrival
    await publish_in_a_transaction(platform, now - 2 * MINUTE)

    async def clock() -> datetime | None:
        query = "SELECT max(watermark) FILTER (WHERE stored_count = 1) AS clock FROM ingest_progress"
        [row] = await platform.fetch(query)
        found: datetime | None = row["clock"]
        return found

    await eventually_async(clock, 20, because="the reading is stored")
    stored_at = await clock()

    async def goes_on() -> bool:
        found = await clock()
        return found is not None and stored_at is not None and found > stored_at

    await eventually_async(goes_on, 15, because="the idle partition is ticked")
