"""How Kafka is reached is checked as a whole before anything starts, and no secret is in what is said about it."""

import json
import os
import ssl
from pathlib import Path

import pytest

from services.api.settings import ApiSettings
from services.cli.places import Places
from services.delivery.settings import DeliverySettings
from services.ingest.settings import IngestSettings
from services.local.certificates import ensure_certificates
from services.local.kafka_server import KafkaServer
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.kafka_access import KafkaAccess, SaslLogin
from services.platform.settings import KafkaSettings, load
from tests.support.client_certificate import make_client_certificate

PREFIX = "METERPOST_KAFKA_"
LOGIN = {"SASL_MECHANISM": "SCRAM-SHA-256", "SASL_USERNAME": "sre", "SASL_PASSWORD": "geheim"}


@pytest.fixture(autouse=True)
def _nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("METERPOST_KAFKA_", "METERPOST_DATA_FOLDER")):
            monkeypatch.delenv(name)


def tell(monkeypatch: pytest.MonkeyPatch, **told: object) -> None:
    for name, value in told.items():
        monkeypatch.setenv(PREFIX + name, str(value))


def refused() -> str:
    with pytest.raises(UserError) as caught:
        load(IngestSettings)
    assert "geheim" not in str(caught.value)
    return str(caught.value)


def access() -> KafkaAccess:
    return load(IngestSettings).kafka_access()


def test_without_a_word_it_is_plaintext() -> None:
    assert access() == KafkaAccess("127.0.0.1:9092")
    assert access().client_settings()["security_protocol"] == "PLAINTEXT"


@pytest.mark.parametrize(
    ("told", "missing"),
    [
        ({"SECURITY_PROTOCOL": "SASL_SSL"}, ["SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD"]),
        ({"SECURITY_PROTOCOL": "SASL_PLAINTEXT", **LOGIN, "SASL_USERNAME": ""}, ["SASL_USERNAME"]),
        ({"SECURITY_PROTOCOL": "SASL_SSL", **LOGIN, "SASL_PASSWORD": ""}, ["SASL_PASSWORD or", "SASL_PASSWORD_FILE"]),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CERTIFICATE_FILE": "ours.pem"}, ["SSL_KEY_FILE"]),
        ({"SECURITY_PROTOCOL": "SASL_SSL", **LOGIN, "SSL_KEY_FILE": "key.pem"}, ["SSL_CERTIFICATE_FILE"]),
    ],
)
def test_what_is_missing_is_named_all_at_once(
    told: dict[str, str], missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, **told)
    said = refused()
    for name in missing:
        assert f"{PREFIX}{name}" in said
    assert said.count("missing") == len(said.splitlines()) - 1


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_a_login_that_nobody_would_use_is_a_mistake(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, SECURITY_PROTOCOL=protocol, **LOGIN)
    said = refused()
    for name in LOGIN:
        assert f"{PREFIX}{name} is given, but {PREFIX}SECURITY_PROTOCOL={protocol} logs in nobody" in said


def test_an_authority_without_tls_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, SSL_CA_FILE="ca.pem")
    assert f"{PREFIX}SSL_CA_FILE is given, but {PREFIX}SECURITY_PROTOCOL=PLAINTEXT does without TLS" in refused()


def test_two_passwords_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, SECURITY_PROTOCOL="SASL_PLAINTEXT", **LOGIN, SASL_PASSWORD_FILE="password")
    assert f"give {PREFIX}SASL_PASSWORD or {PREFIX}SASL_PASSWORD_FILE, not both" in refused()


@pytest.mark.parametrize(("name", "value"), [("SECURITY_PROTOCOL", "TLS"), ("SASL_MECHANISM", "GSSAPI")])
def test_unknown_words_are_named_with_those_there_are(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, **{name: value})
    said = refused()
    assert f"{PREFIX}{name}: " in said
    assert "'SASL_SSL'" in said or "'SCRAM-SHA-512'" in said


def test_a_password_comes_from_a_file_without_the_end_of_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    tell(monkeypatch, SECURITY_PROTOCOL="sasl_plaintext", **LOGIN | {"SASL_PASSWORD": ""}, SASL_PASSWORD_FILE=file)
    assert f"{file} cannot be read: No such file or directory" in refused()
    file.write_text("\n")
    assert f"{file} is empty" in refused()
    file.write_text(" geheim \n")
    kafka = access()
    assert kafka.login is not None
    assert kafka.login.password == " geheim "
    assert "geheim" not in repr(kafka)


def test_files_that_are_no_certificates_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ensure_certificates(tmp_path / "made", SystemClock().now())
    other = tmp_path / "other-key.pem"
    other.write_text(make_client_certificate().key)
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    tell(monkeypatch, SECURITY_PROTOCOL="SSL", SSL_CA_FILE=tmp_path / "no.pem")
    assert f"{PREFIX}SSL_CA_FILE: {tmp_path / 'no.pem'} cannot be read" in refused()
    tell(monkeypatch, SSL_CA_FILE=empty)
    assert f"{PREFIX}SSL_CA_FILE: {empty} holds no certificate" in refused()
    tell(monkeypatch, SSL_CA_FILE=files.authority, SSL_CERTIFICATE_FILE=files.server, SSL_KEY_FILE=other)
    assert f"{files.server} and {other} are not a certificate and its key" in refused()
    tell(monkeypatch, SSL_KEY_FILE=files.server_key)
    context = access().tls
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_processes_without_kafka_need_neither_its_password_nor_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, SECURITY_PROTOCOL="SASL_SSL", SASL_USERNAME="sre", SSL_CA_FILE="nowhere.pem")
    load(ApiSettings)
    for kind in (IngestSettings, DeliverySettings, KafkaSettings):
        with pytest.raises(UserError, match="SASL_PASSWORD"):
            load(kind)


def demo(folder: Path, protocol: str) -> Places:
    (folder / "endpoints.json").write_text(json.dumps({"kafka": "127.0.0.1:1", "kafka_security_protocol": protocol}))
    return Places(data_folder_option=folder)


def test_the_command_takes_the_environment_s_login_but_talks_to_a_demo_s_own_kafka_in_plaintext(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, SECURITY_PROTOCOL="SASL_PLAINTEXT", **LOGIN)
    assert demo(tmp_path, "PLAINTEXT").kafka_access() == KafkaAccess("127.0.0.1:1")
    login = SaslLogin("SCRAM-SHA-256", "sre", "geheim")
    assert demo(tmp_path, "SASL_PLAINTEXT").kafka_access() == KafkaAccess("127.0.0.1:1", login)
    assert Places(kafka_option="127.0.0.1:2").kafka_access() == KafkaAccess("127.0.0.1:2", login)
    tell(monkeypatch, BOOTSTRAP_SERVERS="127.0.0.1:3")
    assert Places().kafka_access() == KafkaAccess("127.0.0.1:3", login)


def test_make_run_hands_the_login_to_an_existing_kafka_on_and_none_to_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, SECURITY_PROTOCOL="SASL_SSL", **LOGIN, SSL_CA_FILE="ca.pem")
    monkeypatch.chdir(tmp_path)
    stack = Stack(load(LocalSettings, data_folder=tmp_path), SystemClock(), print)
    told = stack.kafka_environment(KafkaAccess("kafka:1"))
    assert told[PREFIX + "BOOTSTRAP_SERVERS"] == "kafka:1"
    assert told[PREFIX + "SASL_PASSWORD"] == "geheim"
    assert told[PREFIX + "SSL_CA_FILE"] == str(tmp_path / "ca.pem")
    stack.kafka = KafkaServer(data_folder=tmp_path / "kafka", libraries=tmp_path)
    for name, value in stack.kafka_environment(KafkaAccess("127.0.0.1:1")).items():
        monkeypatch.setenv(name, value)
    assert access() == KafkaAccess("127.0.0.1:1")
