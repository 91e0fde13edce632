"""docker-compose.yml is a Compose file, and fits the code that its containers run."""

import importlib.util
import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic_settings import BaseSettings

from services.api.settings import ApiSettings
from services.cli.places import DATABASE_VARIABLE, KAFKA_VARIABLE, TOPIC_PREFIX_VARIABLE
from services.delivery.settings import DeliverySettings
from services.delivery.transports import TRANSPORTS
from services.dropbox.settings import DropboxSettings
from services.exports.settings import ExportsSettings
from services.ingest.settings import IngestSettings
from services.local.fleet import FleetSettings
from services.local.seed_demo import SeedSettings
from services.platform.export_store import EXPORT_STORE_VARIABLE
from services.platform.settings import ENVIRONMENT_PREFIX
from services.windowing.settings import WindowingSettings
from tests.support.compose import COMPOSE_FILE, REPOSITORY, compose_defaults, image_environment, read_compose

SCHEMA = json.loads((REPOSITORY / "tests" / "data" / "compose-spec.schema.json").read_bytes())
COMPOSE = read_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"migrate", "seed", "cli", "dropbox-keys"}
SETTINGS: dict[str, type[BaseSettings]] = {
    "services.api": ApiSettings,
    "services.ingest": IngestSettings,
    "services.windowing": WindowingSettings,
    "services.delivery": DeliverySettings,
    "services.dropbox": DropboxSettings,
    "services.exports": ExportsSettings,
    "services.local.fleet": FleetSettings,
    "services.local.seed_demo": SeedSettings,
}
COMMAND_VARIABLES = {KAFKA_VARIABLE, DATABASE_VARIABLE, TOPIC_PREFIX_VARIABLE, EXPORT_STORE_VARIABLE}


def _module(service: dict[str, Any]) -> str | None:
    """Return the module that a service runs by `python -m`; None: it runs the `meterpost` command."""
    command: list[str] = service["command"]
    return command[2] if command[:2] == ["python", "-m"] else None


def _seconds(duration: str) -> int:
    assert re.fullmatch(r"[0-9]+s", duration), duration
    return int(duration[:-1])


def _schema_errors(content: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(content)]


def test_the_file_is_valid_by_the_published_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert _schema_errors(COMPOSE) == []


@pytest.mark.parametrize("broken", [{"restarts": "always"}, {"stop_grace_period": 20}, {"healthcheck": {"tests": []}}])
def test_the_schema_would_notice(broken: dict[str, Any]) -> None:
    services = {**SERVICES, "ingest": {**SERVICES["ingest"], **broken}}
    assert _schema_errors({**COMPOSE, "services": services})


def test_every_service_module_can_be_imported() -> None:
    modules = {module for service in OURS.values() if (module := _module(service))}
    assert modules == {*SETTINGS, "services.local.https_receiver"}
    for module in modules:
        assert importlib.util.find_spec(module), module


def test_every_transport_has_its_process() -> None:
    delivering = [service["command"][3] for service in OURS.values() if _module(service) == "services.delivery"]
    assert sorted(delivering) == sorted(TRANSPORTS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_variable_is_a_setting_of_what_it_is_given_to(name: str) -> None:
    service, module = OURS[name], _module(OURS[name])
    environment: dict[str, str] = service.get("environment", {})
    if module in SETTINGS:
        fields = SETTINGS[module].model_fields
        assert {key for key in environment if _field(key) not in fields} == set()
    else:
        assert set(environment) <= (COMMAND_VARIABLES if module is None else set())


def test_every_variable_of_the_image_is_a_setting_of_every_service() -> None:
    ours = {_field(key) for key in image_environment() if key.startswith(ENVIRONMENT_PREFIX)}
    assert ours == {"health_host", "health_port"}
    services = (
        ApiSettings,
        IngestSettings,
        WindowingSettings,
        DeliverySettings,
        DropboxSettings,
        ExportsSettings,
        FleetSettings,
    )
    for settings in services:
        assert ours <= set(settings.model_fields)


def _field(variable: str) -> str:
    assert variable.startswith(ENVIRONMENT_PREFIX), variable
    return variable.removeprefix(ENVIRONMENT_PREFIX).lower()


@pytest.mark.parametrize("name", [name for name in sorted(OURS) if _module(OURS[name]) in SETTINGS])
def test_the_values_are_sound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = OURS[name]
    given = {key: value for key, value in image_environment().items() if key.startswith(ENVIRONMENT_PREFIX)}
    for key, value in (given | service["environment"]).items():
        monkeypatch.setenv(key, str(value))
    settings = SETTINGS[str(_module(service))]()
    url = settings.model_dump()["database_url"].get_secret_value()
    assert url == "postgresql://meterpost:meterpost-local@postgres:5432/meterpost"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_watched_and_stopped_in_time(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["restart"] == "unless-stopped"
        # Without a test of its own, the image's HEALTHCHECK is what is asked.
        assert "test" in service["healthcheck"] or _module(service) in SETTINGS
        assert _seconds(service["healthcheck"]["timeout"]) > 0
    deadline = service.get("environment", {}).get("METERPOST_SHUTDOWN_DEADLINE_SECONDS", 0)
    assert _seconds(service["stop_grace_period"]) >= int(deadline) + 5


def test_every_image_is_pinned() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[a-z/]+:[0-9][0-9a-z.-]*", service["image"]), name


def test_ours_run_without_rights() -> None:
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "user" not in service, name
        assert "privileged" not in service, name


def test_nothing_is_published_on_the_host() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service or "network_mode" in service] == []


def test_every_dependency_is_there_and_can_be_waited_for() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
            assert how == {"condition": condition}, needed
            assert "profiles" not in SERVICES[needed]


def test_the_receiver_listens_where_the_jobs_send() -> None:
    url = SERVICES["seed"]["environment"]["METERPOST_RECEIVER_URL"]
    (port,) = [word[7:] for word in SERVICES["receiver-https"]["command"] if word.startswith("--port=")]
    assert url.startswith(f"https://receiver-https:{port}/")


def test_delivery_finds_the_hosted_folder_and_both_sides_the_keys() -> None:
    delivery, dropbox = SERVICES["delivery-sftp"]["environment"], SERVICES["dropbox"]["environment"]
    assert SERVICES[delivery["METERPOST_DROPBOX_HOST"]] is SERVICES["dropbox"]
    assert delivery["METERPOST_DROPBOX_PORT"] == dropbox["METERPOST_DROPBOX_LISTEN_PORT"]
    made = dict(word[2:].split("=") for word in SERVICES["dropbox-keys"]["command"] if word.startswith("--"))
    assert made["folder"] == dropbox["METERPOST_DROPBOX_FOLDER"]
    assert made["key-file"] == delivery["METERPOST_DROPBOX_KEY_FILE"]
    assert made["key-file"] + ".pub" == dropbox["METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE"]
    assert made["host-keys-file"] == delivery["METERPOST_DROPBOX_HOST_KEYS_FILE"]
    assert made["host-keys-file"] == SERVICES["api"]["environment"]["METERPOST_DROPBOX_HOST_KEYS_FILE"]
    assert not any(mount.startswith("dropbox-keys:") for mount in SERVICES["api"]["volumes"]), "private keys"


def test_every_volume_is_used_where_the_image_has_its_folder() -> None:
    mounted = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])
    for service in OURS.values():
        for mount in service.get("volumes", []):
            volume, path, *_mode = mount.split(":")
            assert path == f"/var/lib/meterpost/{volume}"


def test_the_broker_creates_no_topic_by_itself_and_publishers_may_set_the_arrival() -> None:
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert SERVICES["migrate"]["command"][2].endswith("meterpost topics declare --replay")
    of_devices = read_compose({"TOPIC_OPTIONS": ""})["services"]["migrate"]["command"][2]
    assert of_devices.rstrip().endswith("meterpost topics declare")


def test_the_example_of_settings_names_all_of_them_with_their_defaults() -> None:
    lines = (REPOSITORY / ".env.example").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert named == compose_defaults()


def test_the_password_is_one_setting() -> None:
    word = "another-one"
    given = read_compose({"POSTGRES_PASSWORD": word})["services"]
    assert given["postgres"]["environment"]["POSTGRES_PASSWORD"] == word
    assert f":{word}@postgres" in given["ingest"]["environment"]["METERPOST_DATABASE_URL"]
    assert "meterpost-local" not in json.dumps(given)
    # Where anything but the variable's default held a password, it would be committed.
    assert "PASSWORD: " not in COMPOSE_FILE.read_text(encoding="utf-8").replace("PASSWORD: ${", "")
