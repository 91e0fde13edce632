"""The same topics consumed live, after a stop of hours, and from zero: the same windows and the same bytes."""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.core.times import floor_to
from services.local.kafka_server import KafkaServer
from tests.support.closing import MINUTE, T0, stored_rows
from tests.support.demo_receiver import demo_receiver
from tests.support.flow import RESOLUTIONS, Flow, FlowJob
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.product import Product
from tests.support.stack import Databases

HOUR = 60 * MINUTE
FLOW = Flow(
    meters=20,
    minutes=8 * 60,
    jobs=(FlowJob(1, "Minutes", 15, 1), FlowJob(2, "Fives", 60, 5), FlowJob(3, "Hours", 60, 60)),
)
PROOFS = (
    "SELECT resolution_minutes, window_start, bucket, cut_off, row_count, sha256 FROM window_closing ORDER BY 1, 2, 3"
)
PARTS = (
    "SELECT job_id, slot_start, part, first_measured_at, first_meter_id, row_count, byte_count, sha256 "
    "FROM export_part ORDER BY 1, 2, 3"
)
_NUMBERS = itertools.count(1)


class Consumers:
    """Three databases and receivers, one after the other fed from the same topics."""

    def __init__(self, kafka: KafkaServer, databases: Databases, folder: Path, stack: ExitStack) -> None:
        self._kafka = kafka
        self._databases = databases
        self._folder = folder
        self._stack = stack
        self._prefix = f"d{os.getpid()}-{next(_NUMBERS)}."

    async def add(self, name: str) -> Product:
        """Make a database with the same catalog, and a receiver of its own."""
        folder = self._folder / name
        folder.mkdir()
        url = self._stack.enter_context(self._databases.fresh())
        receiver = self._stack.enter_context(demo_receiver(folder / "receiver"))
        platform = Platform(self._kafka.bootstrap_servers, url, self._prefix, folder)
        product = Product(self._stack.enter_context(running(platform)), receiver, FLOW)
        await product.seed()
        return product


@pytest.fixture
def consumers(kafka_server: KafkaServer, databases: Databases, tmp_path: Path) -> Iterator[Consumers]:
    with ExitStack() as stack:
        yield Consumers(kafka_server, databases, tmp_path, stack)


async def publish_live(product: Product, after: datetime, until: datetime) -> None:
    """Publish piece by piece, each when the windows of the one before are closed: as it is in the field."""
    while after < until:
        clock = min(after + 40 * MINUTE, until)
        await product.publish(after, clock)
        await closed(product, clock)
        after = clock


async def closed(product: Product, clock: datetime) -> None:
    """Wait until every one-minute window is closed that can be."""
    due = floor_to(clock - 5 * MINUTE - timedelta(microseconds=1), MINUTE)

    async def reached() -> bool:
        rows = await product.platform.fetch("SELECT closed_until FROM window_closed WHERE resolution_minutes = 1")
        return bool(rows and rows[0]["closed_until"] >= due)

    await eventually_async(reached, 30, because=f"minutes are closed until {due}")


async def finish(product: Product, clock: datetime) -> None:
    """Wait until everything is delivered that is due; end the services."""
    await product.delivered(clock)
    product.platform.end_processes()


async def test_live_after_a_stop_of_six_hours_and_from_zero_the_same_bytes_arrive(consumers: Consumers) -> None:
    live = await consumers.add("live")
    await live.platform.declare_topics(partitions=3)
    stop_at = T0 + 2 * HOUR
    live.start()
    await publish_live(live, T0, stop_at)
    await finish(live, stop_at)

    stopped = await consumers.add("stopped")
    stopped.start()
    await eventually_async(lambda: stopped.receiver.count() > 0, 60, because="the first parts arrive")
    stopped.platform.end_processes()  # in the middle of it, perhaps

    live.start()
    await publish_live(live, stop_at, FLOW.ends_at)
    await finish(live, FLOW.ends_at)

    stopped.start()
    await finish(stopped, FLOW.ends_at)

    from_zero = await consumers.add("from-zero")
    first = from_zero.start_ingest(METERPOST_BATCH_READINGS="73")
    await eventually_async(
        lambda: from_zero.platform.value("SELECT count(*) > 0 FROM reading"), 30, because="the first one is at work"
    )
    others = [from_zero.start_ingest(METERPOST_BATCH_READINGS="500") for _ in range(2)]
    for _ in range(2):
        from_zero.start_windowing(METERPOST_STATEMENT_READINGS="400")
    from_zero.start_delivery()
    await from_zero.platform.ingested(60)
    await eventually_async(
        lambda: from_zero.platform.value("SELECT count(*) > 0 FROM ingest_progress WHERE owner <> $1", first.name),
        60,
        because="partitions are assigned anew",
    )
    assert all(process.is_running for process in [first, *others])
    await finish(from_zero, FLOW.ends_at)

    for product in (live, stopped, from_zero):
        await product.assert_measurements()
        product.assert_received(FLOW.ends_at)
    await assert_same(live, stopped)
    await assert_same(live, from_zero)


async def assert_same(one: Product, other: Product) -> None:
    """Compare rows, proofs, parts and files of two consumers of the same topics."""
    for resolution in RESOLUTIONS:
        expected = await stored_rows(one.platform.database_url, resolution)
        assert await stored_rows(other.platform.database_url, resolution) == expected
    for query in (PROOFS, PARTS):
        assert await other.platform.fetch(query) == await one.platform.fetch(query)
    assert other.receiver.files() == one.receiver.files()


def test_the_flow_holds_what_is_to_be_told_apart() -> None:
    """The comparison above would say little about readings that all arrive once and in time."""
    readings = [item for one in FLOW.uploads for item in one.versions]
    late = {
        resolution: sum(
            item.arrived_at > floor_to(item.measured_at, resolution * MINUTE) + (resolution + 5) * MINUTE
            for item in readings
        )
        for resolution in RESOLUTIONS
    }
    assert late[1] > late[60] > 0
    at_cut_off = [item for item in readings if item.arrived_at == item.measured_at + 6 * MINUTE]
    assert at_cut_off
    keys = [(item.meter_id, item.measured_at) for item in readings]
    assert len(keys) > len(set(keys)) > 0
    both_topics = {(key, item.source_topic) for key, item in zip(keys, readings, strict=True)}
    assert len(both_topics) > len(set(keys))
    assert len(readings) > sum(late.values()) > 100
