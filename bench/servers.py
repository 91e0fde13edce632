"""What a bench runs on: a broker and a database of its own on this machine, and services as processes of their own."""

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from services.local.processes import ChildProcess
from services.local.settings import REPOSITORY
from services.platform.kafka_access import KafkaAccess
from services.platform.migrations import upgrade_async


@dataclass
class Servers:
    """Addresses, and the services that were started."""

    bootstrap_servers: str
    database_url: str
    folder: Path
    services: list[ChildProcess] = field(default_factory=list)

    @property
    def kafka(self) -> KafkaAccess:
        """How the broker is reached."""
        return KafkaAccess(self.bootstrap_servers)

    def service(self, module: str, *arguments: str, **environment: str) -> ChildProcess:
        """Start a service; it ends with the servers, at the latest."""
        name = f"{module.rpartition('.')[2]}-{len(self.services)}"
        process = ChildProcess(
            name=name,
            command=[sys.executable, "-m", module, *arguments],
            log_file=self.folder / f"{name}.log",
            pid_file=self.folder / f"{name}.pid",
            working_folder=REPOSITORY,
            environment={
                **os.environ,
                "METERPOST_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
                "METERPOST_DATABASE_URL": self.database_url,
                "METERPOST_INSTANCE": name,
                **environment,
            },
        )
        process.start()
        self.services.append(process)
        return process


@asynccontextmanager
async def servers() -> AsyncIterator[Servers]:
    """Start a broker and a migrated database in a temporary folder; everything ends and is removed afterwards."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="meterpost-bench-")))
        kafka = KafkaServer(data_folder=folder / "kafka", libraries=ensure_kafka_libraries())
        postgres = PostgresServer(data_folder=folder / "postgres")
        cleanup.callback(kafka.stop)
        kafka.start()
        cleanup.callback(postgres.destroy)
        postgres.start()
        await upgrade_async(postgres.url())
        on = Servers(kafka.bootstrap_servers, postgres.url(), folder)
        try:
            yield on
        finally:
            for service in on.services:
                service.stop(5)
