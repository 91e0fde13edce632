"""One flow through the whole product, disturbed again and again: what arrives is what would have arrived anyway.

All tests share the flow, each takes the next half hour of it; so each one also starts where the ones before left off.
"""

import asyncio
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from services.local.processes import ChildProcess
from tests.support.closing import MINUTE, T0
from tests.support.demo_receiver import demo_receiver
from tests.support.flow import Flow, FlowJob
from tests.support.platform import Platform, running
from tests.support.polling import eventually, eventually_async
from tests.support.product import Product
from tests.support.receiver import make_authority, running_receiver, status
from tests.support.stack import Databases

# 15 minutes of 140 meters are 2,100 rows at a resolution of one minute: two parts.
FLOW = Flow(
    meters=140,
    minutes=240,
    jobs=(
        FlowJob(1, "Quick", 5, 1),
        FlowJob(2, "Large", 15, 1),
        FlowJob(3, "Quarters", 15, 15),
        FlowJob(4, "Hours", 60, 60),
    ),
)
SMALL_STEPS = {"METERPOST_BATCH_READINGS": "150"}
STRETCH = 30 * MINUTE
HALF = STRETCH / 2
_NUMBERS = itertools.count(1)


@dataclass
class Journey:
    """The flow, how far it has come, and the processes by name."""

    product: Product
    processes: dict[str, ChildProcess]
    clock: datetime = T0

    async def go_on(self, by: timedelta = HALF) -> None:
        """Publish the next readings."""
        before, self.clock = self.clock, self.clock + by
        assert self.clock <= FLOW.ends_at, "the flow is too short for so many tests"
        await self.product.publish(before, self.clock)

    async def parts_arrive(self, more_than: int, timeout_s: float = 60) -> None:
        """Wait until more parts have come than these, or all that can."""
        wanted = min(more_than + 1, len(FLOW.parts(self.clock)))
        await eventually_async(lambda: self.product.receiver.count() >= wanted, timeout_s, because="parts arrive")

    async def assert_nothing_lost(self) -> None:
        """Wait for everything that is due now, and compare all that ever came with the model."""
        await self.product.delivered(self.clock)
        self.product.assert_received(self.clock)
        refused = await self.product.platform.fetch("SELECT reason FROM rejected_reading ORDER BY reason")
        assert [row["reason"] for row in refused] == FLOW.refused(self.clock)
        assert all(process.is_running for process in self.processes.values())


@pytest.fixture(scope="module")
def journey(
    kafka_server: KafkaServer, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Journey]:
    """Give the flow with one process of each service."""
    folder = tmp_path_factory.mktemp("journey")
    prefix = f"e{os.getpid()}-{next(_NUMBERS)}."
    with (
        databases.fresh() as url,
        demo_receiver(folder / "receiver") as receiver,
        running(Platform(kafka_server.bootstrap_servers, url, prefix, folder)) as platform,
    ):
        product = Product(platform, receiver, FLOW)
        asyncio.run(platform.declare_topics(partitions=2))
        asyncio.run(product.seed())
        names = ("ingest", "windowing", "delivery")
        yield Journey(product, dict(zip(names, product.start(SMALL_STEPS), strict=True)))


async def test_undisturbed_bad_records_are_refused_and_their_neighbours_arrive(journey: Journey) -> None:
    first_clock = journey.clock
    await journey.go_on(STRETCH + 6 * MINUTE)
    await journey.assert_nothing_lost()
    reasons = set(FLOW.refused(journey.clock))
    assert reasons == {"too_large", "malformed", "unknown_device", "in_future", "schema_violation"}
    assert first_clock == T0 or len(FLOW.parts(journey.clock)) > len(FLOW.parts(first_clock))


@pytest.mark.parametrize("name", ["ingest", "windowing", "delivery"])
async def test_a_service_killed_in_the_middle_is_started_again(journey: Journey, name: str) -> None:
    traces = await traces_of(journey, name)
    await journey.go_on()
    await eventually_async(lambda: traces_of(journey, name, unlike=traces), 30, because=f"{name} is at work")
    journey.processes[name].kill()
    await journey.go_on()
    journey.processes[name].start()
    if name == "delivery":
        for _again in range(2):
            await journey.parts_arrive(journey.product.receiver.count())
            journey.processes[name].kill()
            journey.processes[name].start()
    await journey.assert_nothing_lost()


async def traces_of(journey: Journey, name: str, unlike: object = None) -> Any:
    """Return when the service last left something in its table; None where that is `unlike`."""
    query = {
        "ingest": "SELECT coalesce(max(updated_at), '-infinity')::text FROM ingest_progress",
        "windowing": "SELECT coalesce(max(closed_at), '-infinity')::text FROM window_closing",
        "delivery": "SELECT coalesce(max(finished_at), '-infinity')::text FROM delivery_attempt",
    }[name]
    found = await journey.product.platform.value(query)
    return None if found == unlike else found


async def test_postgres_killed_in_the_middle(journey: Journey, postgres_server: PostgresServer) -> None:
    count = journey.product.receiver.count()
    await journey.go_on()
    await journey.parts_arrive(count)
    await asyncio.to_thread(postgres_server.kill)
    await journey.go_on()
    await asyncio.to_thread(postgres_server.start)
    await journey.assert_nothing_lost()


async def test_kafka_killed_in_the_middle(journey: Journey, kafka_server: KafkaServer) -> None:
    await journey.go_on()
    await asyncio.to_thread(kafka_server.kill)
    await asyncio.to_thread(kafka_server.start)
    await journey.go_on()
    await journey.assert_nothing_lost()


async def test_the_receiver_answers_500_and_is_down_for_a_while(journey: Journey) -> None:
    receiver = journey.product.receiver
    authority = make_authority(receiver.certificates.authority.parent)
    receiver.kill()
    async with running_receiver(authority.server, receiver.port) as failing:
        failing.otherwise = status(500)
        await journey.go_on()
        await eventually_async(lambda: len(failing.received) >= 8, 30, because="parts are tried again and again")
        tried = {request.part_id for request in failing.received}
    # Only the first part of each job was ever tried: none overtakes another.
    assert len(tried) <= len(FLOW.jobs)
    await journey.go_on()
    delivery = journey.processes["delivery"]
    eventually(lambda: "connection_refused" in delivery.log_tail(50), 30, because="delivery meets a closed door")
    receiver.start()
    await journey.assert_nothing_lost()
