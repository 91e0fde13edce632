"""The embedded Kafka and PostgreSQL: real starts, ends and crashes."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from services.local.errors import LocalServerError
from services.local.identity import end_process, process_identity
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_probe import serving_cluster
from services.local.kafka_server import KafkaServer
from services.local.ports import LOOPBACK
from services.local.postgres_server import PostgresServer
from services.platform.kafka import GroupConsumer, Producer
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_admin import Admin
from services.platform.topics import TopicSpec
from tests.support.polling import eventually, eventually_async
from tests.support.stack import JAVA_FLAGS

REPOSITORY = Path(__file__).parents[2]
LARGE_RECORD = b"x" * 3_500_000
TOPIC = TopicSpec(
    name="kept", partitions=1, retention_hours=None, time_type="CreateTime", max_message_bytes=4 * 1024 * 1024
)


@pytest.fixture(scope="module")
def kafka_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded") / "kafka"


def new_kafka(folder: Path) -> KafkaServer:
    return KafkaServer(data_folder=folder, libraries=ensure_kafka_libraries(), java_flags=JAVA_FLAGS)


@pytest.fixture(scope="module")
def own_kafka(kafka_folder: Path) -> Iterator[KafkaServer]:
    """Give a Kafka that these tests alone may end and start; it holds one large record in the topic `kept`."""
    server = new_kafka(kafka_folder)
    server.start()
    asyncio.run(_publish_large_record(server.bootstrap_servers))
    yield server
    server.stop()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """Give a PostgreSQL that this test alone may end and start."""
    server = PostgresServer(data_folder=tmp_path / "postgres")
    server.start()
    yield server
    server.destroy()


async def _publish_large_record(bootstrap_servers: str) -> None:
    kafka = KafkaAccess(bootstrap_servers)
    admin, producer = Admin(kafka), Producer(kafka, client="test")
    await admin.start()
    await producer.start()
    await admin.declare([TOPIC])
    await producer.send(TOPIC.name, LARGE_RECORD)
    await producer.stop()
    await admin.stop()


async def _kept_records(bootstrap_servers: str) -> list[bytes | None]:
    # The client itself would wait for a broker that has ended without a limit.
    async with asyncio.timeout(30):
        return await _read_kept(bootstrap_servers)


async def _read_kept(bootstrap_servers: str) -> list[bytes | None]:
    kafka = KafkaAccess(bootstrap_servers)
    consumer = GroupConsumer(kafka, group=f"reader-{os.urandom(4).hex()}", topics=["kept"], client="test")
    await consumer.start()
    found: list[bytes | None] = []

    async def some() -> bool:
        for batch in await consumer.poll(timeout_ms=200):
            found.extend(record.value for record in batch.records)
        return bool(found)

    try:
        await eventually_async(some, 20, because="the record that was published is read")
    finally:
        await consumer.stop()
    return found


def _foreign_listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOOPBACK, port))
    listener.listen()
    return listener


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_kafka_comes_back_on_its_port_with_its_records(own_kafka: KafkaServer, end: str) -> None:
    own_kafka.start()
    address = own_kafka.bootstrap_servers
    getattr(own_kafka, end)()
    assert not own_kafka.is_running

    own_kafka.start()

    assert own_kafka.bootstrap_servers == address
    assert asyncio.run(_kept_records(address)) == [LARGE_RECORD]


def test_kafka_leaves_a_port_that_was_taken_meanwhile(own_kafka: KafkaServer) -> None:
    own_kafka.start()
    address = own_kafka.bootstrap_servers
    own_kafka.stop()
    with closing(_foreign_listener(int(address.rpartition(":")[2]))):
        own_kafka.start()

        assert own_kafka.bootstrap_servers != address
        assert asyncio.run(_kept_records(own_kafka.bootstrap_servers)) == [LARGE_RECORD]


def test_kafka_may_be_restarted_from_a_thread_that_ends(own_kafka: KafkaServer) -> None:
    """The death signal is bound to a thread: it must not be the caller's."""
    own_kafka.stop()
    starter = threading.Thread(target=own_kafka.start)
    starter.start()
    starter.join()
    assert asyncio.run(_kept_records(own_kafka.bootstrap_servers)) == [LARGE_RECORD]
    assert own_kafka.is_running


def test_a_kafka_left_running_is_ended_by_the_next_start(own_kafka: KafkaServer, kafka_folder: Path) -> None:
    own_kafka.start()
    left_running = own_kafka.pid
    assert left_running is not None
    own_kafka._lock.release()  # as the system does when the process that holds it is killed

    next_server = new_kafka(kafka_folder)
    try:
        next_server.start()

        assert process_identity(left_running) is None
        assert next_server.bootstrap_servers == own_kafka.bootstrap_servers
        assert asyncio.run(_kept_records(next_server.bootstrap_servers)) == [LARGE_RECORD]
    finally:
        next_server.stop()


def test_a_folder_in_use_is_refused(own_kafka: KafkaServer, kafka_folder: Path) -> None:
    own_kafka.start()
    second = new_kafka(kafka_folder)

    with pytest.raises(LocalServerError, match=rf"in use by another process \(id {os.getpid()}\)"):
        second.start()

    assert own_kafka.is_running


def test_kafka_that_cannot_start_shows_why(tmp_path: Path) -> None:
    (tmp_path / "no-libraries").mkdir()
    server = KafkaServer(data_folder=tmp_path / "kafka", libraries=tmp_path / "no-libraries")

    with pytest.raises(LocalServerError, match=r"could not prepare(.|\n)*StorageTool"):
        server.start()

    assert not server.is_running


def test_a_program_that_does_not_speak_kafka_is_not_taken_for_one() -> None:
    with closing(_foreign_listener(0)) as listener:
        threading.Thread(target=_answer_with_nonsense, args=(listener,)).start()
        assert serving_cluster(LOOPBACK, listener.getsockname()[1]) is None


def _answer_with_nonsense(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_postgres_comes_back_on_its_port_with_its_rows(own_postgres: PostgresServer, end: str) -> None:
    own_postgres.run_sql("CREATE TABLE kept AS SELECT 42 AS number", database="meterpost")
    url = own_postgres.url()
    getattr(own_postgres, end)()
    assert not own_postgres.is_running

    own_postgres.start()

    assert own_postgres.url() == url
    assert own_postgres.run_sql("SELECT number FROM kept", database="meterpost") == "42"


async def test_postgres_asks_for_the_password(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url = own_postgres.url()
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT current_database()") == "meterpost"
    await connection.close()

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url.replace("@", "x@"))

    assert (tmp_path / "postgres" / "password").stat().st_mode & 0o777 == 0o600


def test_postgres_restarts_though_its_orphans_are_busy(own_postgres: PostgresServer) -> None:
    """Only the first process is killed, while another is deep in a statement and does not notice."""
    own_postgres.run_sql("CREATE TABLE kept AS SELECT 42 AS number", database="meterpost")
    first = own_postgres.pid
    assert first is not None

    def stay_busy() -> None:
        with pytest.raises(LocalServerError, match=r"connection to server was lost|closed the connection"):
            own_postgres.run_sql("SELECT sum(sqrt(n)) FROM generate_series(1, 4000000000) AS n")

    busy = threading.Thread(target=stay_busy)
    busy.start()
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series%' AND state = 'active'"
    eventually(lambda: own_postgres.run_sql(running) == "2", because="the long statement runs")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not own_postgres.is_running)

    own_postgres.start()

    busy.join()
    assert own_postgres.run_sql("SELECT number FROM kept", database="meterpost") == "42"


def test_postgres_is_not_misled_by_a_reused_process_id(own_postgres: PostgresServer) -> None:
    """Its claim on the data tells of a process id that now belongs to somebody else of the same user."""
    assert own_postgres._cluster is not None
    claim = own_postgres._cluster.files / "postmaster.pid"
    stale = claim.read_text()
    own_postgres.kill()
    account = own_postgres._installation.account if own_postgres._installation else None
    bystander = subprocess.Popen(["sleep", "60"], cwd="/", user=account.user_id if account else None)
    try:
        claim.write_text(stale.replace(stale.splitlines()[0], str(bystander.pid), 1))

        own_postgres.start()

        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_postgres_leaves_a_port_that_is_taken(tmp_path: Path) -> None:
    with closing(_foreign_listener(0)) as listener:
        taken = listener.getsockname()[1]
        server = PostgresServer(data_folder=tmp_path / "postgres", port=taken)
        try:
            server.start()
            assert f":{taken}/" not in server.url()
            assert server.run_sql("SELECT 1") == "1"
        finally:
            server.destroy()


def test_postgres_starts_anew_when_its_data_folder_was_removed(own_postgres: PostgresServer, tmp_path: Path) -> None:
    own_postgres.run_sql("CREATE TABLE kept AS SELECT 42 AS number", database="meterpost")
    old_url = own_postgres.url()
    own_postgres.stop()
    shutil.rmtree(tmp_path / "postgres")

    own_postgres.start()

    assert own_postgres.run_sql("SELECT to_regclass('kept')", database="meterpost") == ""
    assert own_postgres.url() != old_url, "the password is a new one"


def test_a_database_that_was_lost_is_not_replaced_silently(own_postgres: PostgresServer) -> None:
    own_postgres.stop()
    assert own_postgres._cluster is not None
    shutil.rmtree(own_postgres._cluster.home)

    with pytest.raises(LocalServerError, match=r"not where it was left.*remove that data folder to start anew"):
        own_postgres.start()


PARENT = """
import sys
from pathlib import Path
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer

folder = Path(sys.argv[1])
postgres = PostgresServer(data_folder=folder / "postgres")
postgres.start()
postgres.run_sql("CREATE TABLE kept AS SELECT 42 AS number", database="meterpost")
kafka = KafkaServer(data_folder=folder / "kafka", libraries=ensure_kafka_libraries(), java_flags=sys.argv[2:])
kafka.start()
print(postgres.pid, kafka.pid, flush=True)
sys.stdin.read()
"""


def test_the_servers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), *JAVA_FLAGS],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    try:
        assert len(children) == 2
        eventually(
            lambda: all(process_identity(pid) is None for pid in children), because="no child outlives its parent"
        )
    finally:
        for pid in children:
            end_process(pid, stop_signal=signal.SIGTERM, timeout_s=5)

    server = PostgresServer(data_folder=tmp_path / "postgres")
    try:
        server.start()
        assert server.run_sql("SELECT number FROM kept", database="meterpost") == "42"
    finally:
        server.destroy()


async def test_each_test_gets_a_migrated_database_of_its_own(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT to_regclass('ingest_progress')::text") == "ingest_progress"
    finally:
        await connection.close()
