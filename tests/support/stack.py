"""The real servers that tests share, and databases of a test's own."""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.local.errors import LocalServerError
from services.local.folder_lock import FolderLock
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer

_STOP_TIMEOUT_S = 5.0
_MEMORY = Path("/dev/shm")  # noqa: S108  what we put there lies in a folder of our own
_ENOUGH_BYTES = 4 * 2**30
# Compiling a second time, for speed, never pays within minutes.
JAVA_FLAGS = ("-XX:TieredStopAtLevel=1",)
# The servers' own processes are killed in tests, the machine is not: what was written is there without any fsync.
_SETTINGS = {"fsync": "off", "max_wal_size": "512MB"}


@contextmanager
def temporary_kafka() -> Iterator[KafkaServer]:
    """Run a Kafka with an empty data folder that is removed afterwards."""
    with _server_folder("kafka") as folder:
        server = KafkaServer(data_folder=folder / "data", libraries=ensure_kafka_libraries(), java_flags=JAVA_FLAGS)
        server.start()
        try:
            yield server
        finally:
            server.stop(_STOP_TIMEOUT_S)


@contextmanager
def temporary_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL with an empty data folder; all its data is removed afterwards."""
    with _server_folder("postgres") as folder:
        folder.chmod(0o711)  # PostgreSQL's unprivileged user finds its own folder in there and can list nothing
        server = PostgresServer(data_folder=folder / "data", clusters=folder, settings=_SETTINGS)
        try:
            server.start()
            yield server
        finally:
            server.destroy()


@contextmanager
def _server_folder(name: str) -> Iterator[Path]:
    """Give a folder for a server's data, in memory where there is plenty: no test outlasts the machine.

    A database is hundreds of files, and a disk's file system has the more work with new ones the more have been
    deleted of late. What runs that were killed left in memory is removed first.
    """
    place = _place_in_memory()
    if place is None:
        with tempfile.TemporaryDirectory(prefix=f"meterpost-{name}-") as folder:
            yield Path(folder)
        return
    with FolderLock(place):
        for entry in place.iterdir():
            if entry.is_dir() and not _is_in_use(entry):
                shutil.rmtree(entry, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
        in_use = FolderLock(own)
        in_use.acquire_or_fail()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        in_use.release()


def _place_in_memory() -> Path | None:
    """Return the folder in memory that is ours, or None where there is none or too little memory."""
    place = _MEMORY / f"meterpost-tests-{os.getuid()}"
    try:
        # Others pass through to what they know the name of: PostgreSQL's unprivileged user does.
        place.mkdir(mode=0o711, exist_ok=True)
        is_ours = place.lstat().st_uid == os.getuid() and not place.is_symlink()
        found = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        free_bytes = min(shutil.disk_usage(place).free, int(found[1]) * 1024 if found else 0)
    except OSError:
        return None
    return place if is_ours and free_bytes >= _ENOUGH_BYTES else None


def _is_in_use(folder: Path) -> bool:
    lock = FolderLock(folder)
    try:
        lock.acquire_or_fail()
    except LocalServerError:
        return True
    lock.release()
    return False


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
