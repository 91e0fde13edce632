"""The real servers that tests share, and databases of a test's own."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer

_STOP_TIMEOUT_S = 5.0


@contextmanager
def temporary_kafka() -> Iterator[KafkaServer]:
    """Run a Kafka with an empty data folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="meterpost-kafka-") as folder:
        server = KafkaServer(data_folder=Path(folder) / "kafka", libraries=ensure_kafka_libraries())
        server.start()
        try:
            yield server
        finally:
            server.stop(_STOP_TIMEOUT_S)


@contextmanager
def temporary_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL with an empty data folder; all its data is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="meterpost-postgres-") as folder:
        server = PostgresServer(data_folder=Path(folder) / "postgres")
        try:
            server.start()
            yield server
        finally:
            server.destroy()


class Databases:
    """Fresh databases with the product's schema, each a copy of one that was migrated once."""

    def __init__(
        self,
        server: PostgresServer,
        *,
        migrate: Callable[[str], None],
        inspect: Callable[[str], None] = lambda _url: None,
    ) -> None:
        """`inspect` is given the address of each database before it is dropped."""
        self._server = server
        self._inspect = inspect
        self._template = f"template_{os.getpid()}"
        self._numbers = itertools.count(1)
        server.create_database(self._template)
        migrate(server.url(self._template))

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Give the address of a database of one's own, dropped afterwards with whatever is connected to it."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._server.create_database(name, template=self._template)
        try:
            yield self._server.url(name)
        finally:
            if self._server.is_running:
                try:
                    self._inspect(self._server.url(name))
                finally:
                    self._server.drop_database(name)
