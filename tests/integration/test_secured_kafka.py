"""Every kind of client over TLS and with a login, on a real broker; what is said where one side refuses the other."""

import asyncio
import gc
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from services.local.processes import ChildProcess
from services.platform import kafka_refusal
from services.platform.errors import MeterpostError, Unavailable
from services.platform.kafka import GroupConsumer, Producer
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_admin import Admin
from services.platform.kafka_ends import partition_ends
from services.platform.kafka_refusal import KafkaRefusedError
from services.platform.settings import ENVIRONMENT_PREFIX
from services.platform.topics import READINGS_BRIDGE
from tests.support.closing import T0
from tests.support.command import Meterpost
from tests.support.demo_receiver import DemoReceiver, demo_receiver
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.product import QUICK
from tests.support.secured_kafka import MECHANISMS, PASSWORD, USER, SecuredKafka, secured_kafka

NEM12 = Path(__file__).parents[1] / "data" / "nem12_198_meters_5min_one_day.zip"
EXAMPLE_CA = Path(__file__).parents[1] / "support" / "example_ca.pem"
SERVICES = (("services.ingest",), ("services.windowing",), ("services.delivery", "https"))
SOON_S = 20.0
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as server:
        yield server


@pytest.fixture
def over_both(secured: SecuredKafka, database_url: str, tmp_path: Path) -> Iterator[Platform]:
    """Give a platform that reaches Kafka by SASL_SSL."""
    prefix = f"s{next(_NUMBERS)}."
    platform = Platform(secured.address("BOTH"), database_url, prefix, tmp_path, security=secured.security("BOTH"))
    with running(platform) as made:
        yield made


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[DemoReceiver]:
    with demo_receiver(tmp_path / "receiver") as made:
        yield made


def access(
    secured: SecuredKafka, listener: str, *, address: str = "", mechanism: str = "SCRAM-SHA-512", **more: str
) -> KafkaAccess:
    """Return the right way to a listener, with `more` wrong in it."""
    security = secured.security(listener, mechanism, **more)
    return Platform(address or secured.address(listener), "", "", Path(), security=security).kafka


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [("TLS", ""), ("MUTUAL", ""), *itertools.product(("LOGIN", "BOTH"), MECHANISMS)],
)
async def test_every_kind_of_client_gets_through(secured: SecuredKafka, listener: str, mechanism: str) -> None:
    security = secured.security(listener, mechanism)
    prefix = f"c{next(_NUMBERS)}."
    platform = Platform(secured.address(listener), "", prefix, Path(), security=security)
    assert platform.kafka.security_protocol == security["METERPOST_KAFKA_SECURITY_PROTOCOL"]
    await platform.declare_topics(partitions=1)
    topic = platform.topic(READINGS_BRIDGE)
    async with platform.producer() as producer:
        await producer.send(topic, b"{}", key=b"device")
    ends = await partition_ends(platform.kafka, [(topic, 0)], deadline_s=SOON_S)
    assert ends[topic, 0].end_offset == 1
    consumer = GroupConsumer(platform.kafka, group=f"{prefix}read", topics=[topic], client="test")
    await consumer.start()
    try:
        [batch] = await eventually_async(lambda: consumer.poll(timeout_ms=500), SOON_S)
        assert [record.value for record in batch.records] == [b"{}"]
        assert await consumer.answers()
    finally:
        await consumer.stop()


async def test_readings_come_by_the_command_and_leave_by_delivery_over_tls_with_a_login(
    over_both: Platform, receiver: DemoReceiver
) -> None:
    """What ingest, windowing (its faust shell too), delivery and the command do, none of it in plaintext."""
    told = {name: value for name, value in over_both.environment.items() if name.startswith(ENVIRONMENT_PREFIX)}
    meterpost = Meterpost(over_both.folder, told)
    meterpost.ok("topics", "declare", "--replay")
    for service in SERVICES:
        over_both.start(*service, environment=QUICK)
    meterpost.ok("meters", "import", "--from-nem12", NEM12, "--organization", "Market")
    job = meterpost.json(
        *("jobs", "create", "--name", "Hours", "--frequency", "hour", "--resolution", "60", "--all-sites"),
        *("--start", "2019-12-31T14:00:00Z", "--organization", "Market"),
        *("--url", receiver.url, "--ca-file", receiver.certificates.authority),
    )
    meterpost.ok("readings", "publish", NEM12, "--format", "nem12", "--organization", "Market")

    async def delivered() -> bool:
        query = "SELECT coalesce(sum(row_count), 0) FROM export_part WHERE job_id = $1 AND state = 'delivered'"
        return bool(await over_both.value(query, job["job_id"]) == 198 * 24)

    await eventually_async(delivered, 90, because="everything was delivered")
    status = meterpost.json("ingest", "status")
    assert status["totals"]["lag_records"] == 0
    for process in over_both.processes:
        log = process.log_file.read_text()
        assert "doorbell_silent" not in log
        assert PASSWORD not in log
        process.stop(timeout_s=6)
        assert process.exit_code == 0


CLIENTS: Mapping[str, Callable[[KafkaAccess], Admin | Producer | GroupConsumer]] = {
    "admin": Admin,
    "producer": lambda kafka: Producer(kafka, client="test"),
    "consumer": lambda kafka: GroupConsumer(kafka, group="refused", topics=["refused"], client="test"),
}


async def said_by(kafka: KafkaAccess, kind: str = "admin") -> MeterpostError:
    """Start a client that cannot be started, and return what it says; it must say so soon."""
    client, began = CLIENTS[kind](kafka), time.monotonic()
    with pytest.raises(MeterpostError) as caught:
        await client.start()
    await client.stop()
    assert time.monotonic() - began < SOON_S
    assert PASSWORD not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_wrong_password_is_said_to_be_one(secured: SecuredKafka, kind: str, mechanism: str) -> None:
    error = await said_by(access(secured, "BOTH", mechanism=mechanism, SASL_PASSWORD="no-such-word"), kind)
    assert isinstance(error, KafkaRefusedError)
    assert f"refuses the login of {USER} by {mechanism}" in str(error)
    assert secured.address("BOTH") in str(error)
    assert "METERPOST_KAFKA_SASL_PASSWORD" in str(error)
    assert "no-such-word" not in str(error)


@pytest.mark.parametrize("kind", CLIENTS)
async def test_an_unknown_authority_is_said_to_be_one(secured: SecuredKafka, kind: str) -> None:
    error = await said_by(access(secured, "BOTH", SSL_CA_FILE=str(EXAMPLE_CA)), kind)
    assert isinstance(error, KafkaRefusedError)
    assert "shows a certificate that is not accepted" in str(error)
    assert "METERPOST_KAFKA_SSL_CA_FILE must hold the authority" in str(error)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_wrong_host_name_is_said_to_be_one(secured: SecuredKafka, kind: str, host: str) -> None:
    """Its certificate is for localhost. Asked there it names itself 127.0.0.1, as advertised.listeners has it."""
    error = await said_by(access(secured, "MISNAMED", address=secured.address("MISNAMED", host)), kind)
    assert isinstance(error, KafkaRefusedError)
    assert secured.address("MISNAMED") in str(error)
    assert "IP address mismatch" in str(error)
    assert "advertised.listeners" in str(error)


async def test_a_certificate_that_the_broker_wants_is_asked_for(secured: SecuredKafka) -> None:
    error = await said_by(access(secured, "MUTUAL", SSL_CERTIFICATE_FILE="", SSL_KEY_FILE=""))
    assert isinstance(error, KafkaRefusedError)
    assert "METERPOST_KAFKA_SSL_CERTIFICATE_FILE" in str(error)


@pytest.mark.parametrize(("spoken", "listener"), [("PLAINTEXT", "TLS"), ("PLAINTEXT", "LOGIN"), ("TLS", "BOTH")])
async def test_a_listener_that_hangs_up_may_want_another_protocol(
    secured: SecuredKafka, spoken: str, listener: str
) -> None:
    address = secured.address(listener)
    kafka = KafkaAccess(address) if spoken == "PLAINTEXT" else access(secured, spoken, address=address)
    error = await said_by(kafka)
    assert isinstance(error, Unavailable)
    assert f"wants another METERPOST_KAFKA_SECURITY_PROTOCOL than {kafka.security_protocol}" in str(error)


@pytest.mark.parametrize("listener", ["TLS", "PLAINTEXT"])
async def test_a_login_where_nobody_asks_for_one_is_told_so(secured: SecuredKafka, listener: str) -> None:
    address = secured.bootstrap_servers if listener == "PLAINTEXT" else secured.address(listener)
    error = await said_by(access(secured, "LOGIN" if listener == "PLAINTEXT" else "BOTH", address=address))
    assert isinstance(error, KafkaRefusedError)
    assert "METERPOST_KAFKA_SECURITY_PROTOCOL" in str(error)


@pytest.mark.parametrize("close_seconds", [kafka_refusal.CLOSE_SECONDS, 0.05])
async def test_a_refused_connection_is_closed_however_late_the_broker_says_goodbye(
    secured: SecuredKafka, close_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its TLS would wait for that goodbye for half a minute, or be left open where the event loop ends before."""
    monkeypatch.setattr(kafka_refusal, "CLOSE_SECONDS", close_seconds)
    host, port = secured.address("TLS").split(":")

    async def refused() -> None:
        assert isinstance(await said_by(access(secured, "BOTH", address=f"{host}:{proxy.port}")), KafkaRefusedError)

    async with FaultProxy(host, int(port)).running() as proxy:
        proxy.faults = Faults(latency_s=0.1)
        with warnings.catch_warnings(record=True) as left:
            warnings.simplefilter("always")
            await asyncio.to_thread(asyncio.run, refused())
            gc.collect()
    assert [str(one.message) for one in left] == []


async def test_a_broker_that_is_away_is_waited_for(secured: SecuredKafka) -> None:
    error = await said_by(access(secured, "BOTH", address="127.0.0.1:9"))
    assert isinstance(error, Unavailable)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"SASL_PASSWORD": "no-such-word"}, "refuses the login of meterpost"),
        ({"SSL_CA_FILE": str(EXAMPLE_CA)}, "shows a certificate that is not accepted"),
    ],
)
async def test_a_service_that_is_refused_ends_as_with_other_wrong_settings(
    over_both: Platform, service: tuple[str, ...], wrong: dict[str, str], said: str
) -> None:
    environment = {f"METERPOST_KAFKA_{name}": value for name, value in wrong.items()}
    process = over_both.start(*service, environment=environment)
    await eventually_async(lambda: process.exit_code is not None, SOON_S)
    assert process.exit_code == 2
    log = process.log_file.read_text()
    assert said in log.splitlines()[-1]
    assert "no-such-word" not in log


def test_the_command_that_is_refused_says_why_in_one_line(secured: SecuredKafka, tmp_path: Path) -> None:
    environment = {
        "METERPOST_KAFKA_BOOTSTRAP_SERVERS": secured.address("BOTH"),
        **secured.security("BOTH", SASL_PASSWORD="no-such-word"),
    }
    outcome = Meterpost(tmp_path, environment)("topics", "declare")
    assert outcome.code == 2
    assert f"refuses the login of {USER} by SCRAM-SHA-512" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    del environment["METERPOST_KAFKA_SASL_PASSWORD"]
    outcome = Meterpost(tmp_path, environment)("topics", "declare")
    assert outcome.code == 2
    assert "METERPOST_KAFKA_SASL_PASSWORD or METERPOST_KAFKA_SASL_PASSWORD_FILE is missing" in outcome.err


async def test_processes_that_are_locked_out_later_say_so_and_go_on_when_they_are_let_in(
    secured: SecuredKafka, over_both: Platform
) -> None:
    """They were right when they started, so they wait, but not in silence."""
    over_both.security = secured.security("BOTH", "PLAIN")
    await over_both.declare_topics()
    ingest = over_both.start("services.ingest", environment=QUICK)
    windowing = over_both.start("services.windowing", environment=QUICK)
    await over_both.tick(T0)
    await over_both.ingested()
    await restart(secured, plain_password="changed-by-somebody")
    refused = f"refuses the login of {USER} by PLAIN"
    await until_said(ingest, "kafka_refuses", refused)
    await until_said(windowing, "server_away", refused)
    assert (ingest.is_running, windowing.is_running) == (True, True)
    await restart(secured, plain_password=PASSWORD)
    await over_both.tick(T0 + timedelta(minutes=1))
    await over_both.ingested(60)


async def until_said(process: ChildProcess, *words: str) -> None:
    """Wait until one line of a process's log has all the words."""

    def said() -> bool:
        return any(all(word in line for word in words) for line in process.log_file.read_text().splitlines())

    await eventually_async(said, 60, because=f"{process.name} says {words}")


async def restart(secured: SecuredKafka, *, plain_password: str) -> None:
    secured.plain_password = plain_password
    await asyncio.to_thread(secured.stop, 10)
    await asyncio.to_thread(secured.start)
