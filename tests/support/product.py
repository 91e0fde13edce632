"""The product's services on a platform of a test's own, with the catalog and the jobs of a flow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.local.processes import ChildProcess
from services.platform.kafka import acknowledged
from tests.support.closing import T0, seed_meters, stored_rows
from tests.support.demo_receiver import DemoReceiver
from tests.support.flow import BRIDGE, RESOLUTIONS, Flow, input_of, logger_of
from tests.support.platform import Platform
from tests.support.polling import eventually_async

QUICK = {
    "METERPOST_LOOK_EVERY_SECONDS": "0.3",
    "METERPOST_LOOK_SECONDS": "0.2",
    "METERPOST_FIRST_RETRY_SECONDS": "0.1",
    "METERPOST_LONGEST_RETRY_SECONDS": "0.5",
}
"""Settings under which a test does not wait for looks and retries. None of them decides what is delivered."""


@dataclass
class Product:
    """A platform, a customer's server, and the readings that flow from one to the other."""

    platform: Platform
    receiver: DemoReceiver
    flow: Flow
    installation_id: str = ""

    async def seed(self) -> None:
        """Register the flow's meters and jobs; every id is fixed, so that two databases hold the same."""
        self.installation_id = await self.platform.value("SELECT installation_id FROM installation")
        await seed_meters(self.platform.database_url, self.flow.conversions)
        connection = await asyncpg.connect(self.platform.database_url)
        try:
            async with connection.transaction():
                await self._seed_devices(connection)
                await self._seed_jobs(connection)
        finally:
            await connection.close()

    async def _seed_devices(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        await connection.execute("INSERT INTO site_description VALUES (1, '-infinity', 1, 'North depot', 'UTC')")
        loggers = {logger_of(meter) for meter in self.flow.on_loggers}
        await connection.executemany(
            "INSERT INTO device VALUES ($1, 1, $2, 1)",
            [(BRIDGE, "bridge"), *((logger, "logger") for logger in sorted(loggers))],
        )
        await connection.executemany(
            "INSERT INTO input_attachment VALUES ($1, $2, '-infinity', 1, $3)",
            [(logger_of(meter), input_of(meter), meter) for meter in self.flow.on_loggers],
        )
        await connection.executemany(
            "INSERT INTO bridge_attachment VALUES ($1, $2, '-infinity', 1, true)",
            [(BRIDGE, meter) for meter in self.flow.on_bridge],
        )

    async def _seed_jobs(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        settings = json.dumps({"url": self.receiver.url, "ca_pem": self.receiver.ca_pem})
        for job in self.flow.jobs:
            await connection.execute("INSERT INTO export_job VALUES ($1, 1, $2)", job.job_id, T0)
            await connection.execute(
                "INSERT INTO export_job_version (organization_id, job_id, version, effective_from, name, data, "
                "frequency_minutes, resolution_minutes, transport, transport_settings) "
                "VALUES (1, $1, 1, $2, $3, 'meters_measurements', $4, $5, 'https', $6)",
                *(job.job_id, T0, job.name, job.frequency_minutes, job.resolution_minutes, settings),
            )

    def start_ingest(self, **environment: str) -> ChildProcess:
        return self.platform.start("services.ingest", environment={**QUICK, **environment})

    def start_windowing(self, **environment: str) -> ChildProcess:
        return self.platform.start("services.windowing", environment={**QUICK, **environment})

    def start_delivery(self, **environment: str) -> ChildProcess:
        return self.platform.start("services.delivery", "https", environment={**QUICK, **environment})

    def start(self, environment: Mapping[str, str] | None = None) -> list[ChildProcess]:
        """Start one process of each service."""
        more = dict(environment or {})
        return [self.start_ingest(**more), self.start_windowing(**more), self.start_delivery(**more)]

    async def publish(self, after: datetime, until: datetime) -> None:
        """Publish what arrives after `after` and up to `until`, where the arrival clock then stands."""
        uploads = [one for one in self.flow.uploads if after < one.arrives_at <= until]
        async with self.platform.producer() as producer:
            await acknowledged(
                [
                    await producer.enqueue(
                        self.platform.topic(one.topic), one.value, key=one.device_id.encode(), created_at=one.arrives_at
                    )
                    for one in uploads
                ]
            )
        await self.platform.tick(until)

    async def delivered(self, clock: datetime, timeout_s: float = 60) -> None:
        """Wait until the database says that everything due at `clock` has been delivered."""
        expected = len(self.flow.parts(clock))

        async def done() -> bool:
            count = await self.platform.value("SELECT count(*) FROM export_part WHERE state = 'delivered'")
            return bool(count >= expected)

        await eventually_async(done, timeout_s, because=f"{expected} parts are delivered")

    async def assert_measurements(self) -> None:
        """Compare the measurements of every resolution with the model."""
        for resolution in RESOLUTIONS:
            assert await stored_rows(self.platform.database_url, resolution) == self.flow.rows(resolution)

    def assert_received(self, clock: datetime) -> None:
        """Compare what lies at the receiver with the model: each part once, with its bytes, in its job's order."""
        expected = self.flow.parts(clock)
        files = self.receiver.files()
        assert files.keys() == {part.file for part in expected}
        assert [part.file for part in expected if files[part.file] != part.content] == []
        requests = self.receiver.requests()
        assert {request["status"] for request in requests} == {200}
        assert len({(request["id"], request["sha256"]) for request in requests}) == len(expected)
        firsts = list(dict.fromkeys(request["id"] for request in requests))
        for job in self.flow.jobs:
            mine = f"{self.installation_id}-job{job.job_id}-"
            ids = [f"{self.installation_id}-{part.part_id}" for part in expected]
            wanted = [one for one in ids if one.startswith(mine)]
            assert [one for one in firsts if one.startswith(mine)] == wanted
