"""What every service answers on its command line: how it is called and what it is set by, and nothing is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from services.api.settings import ApiSettings
from services.delivery.settings import DeliverySettings
from services.dropbox.settings import DropboxSettings
from services.exports.settings import ExportsSettings
from services.ingest.settings import IngestSettings
from services.local.fleet import FleetSettings
from services.local.seed_demo import SeedSettings
from services.local.settings import LocalSettings
from services.platform.settings import KafkaSettings, described
from services.windowing.settings import WindowingSettings

REPOSITORY = Path(__file__).parents[2]
SERVICES: dict[str, type[BaseSettings]] = {
    "services.api": ApiSettings,
    "services.delivery": DeliverySettings,
    "services.dropbox": DropboxSettings,
    "services.exports": ExportsSettings,
    "services.ingest": IngestSettings,
    "services.local.fleet": FleetSettings,
    "services.local.seed_demo": SeedSettings,
    "services.windowing": WindowingSettings,
}
# What is set, rightly or not, is of no account.
SET = {
    "METERPOST_DATABASE_URL": "mysql://root:geheim@nowhere/x",
    "METERPOST_SECRET_KEYS": "geheim",
    "METERPOST_KAFKA_SASL_PASSWORD": "geheim",
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, **SET, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("module", SERVICES)
def test_help_says_what_a_service_is_and_all_it_is_set_by(module: str, tmp_path: Path) -> None:
    told = run(tmp_path, module, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: python -m {module} [-h] [--check-config]")
    for variable, default, meaning in described(SERVICES[module]):
        assert f"  {variable} ({default})\n      {meaning}" in told.stdout
    assert "METERPOST_DATABASE_URL (postgresql://meterpost@127.0.0.1:5432/meterpost)" in told.stdout
    assert "geheim" not in told.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", SERVICES)
def test_what_is_not_known_is_refused_with_a_sentence(module: str, tmp_path: Path) -> None:
    more = ["https"] if module == "services.delivery" else []
    told = run(tmp_path, module, *more, "--check")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.endswith(f"python -m {module}: error: unrecognized arguments: --check\n")


def test_delivery_must_be_told_its_transport_and_names_those_there_are(tmp_path: Path) -> None:
    told = run(tmp_path, "services.delivery", "--check-config")
    assert told.returncode == 2
    assert "{https,sftp,ftps}" in told.stderr
    assert "the following arguments are required: transport" in told.stderr


def test_settings_are_checked_once_the_arguments_are_sound(tmp_path: Path) -> None:
    told = run(tmp_path, "services.delivery", "sftp", "--check-config")
    assert told.returncode == 2
    assert told.stderr.startswith("delivery-sftp: these settings are wrong:\n  METERPOST_DATABASE_URL: ")
    assert "geheim" not in told.stderr


@pytest.mark.parametrize("kind", [*SERVICES.values(), LocalSettings])
def test_every_setting_is_described(kind: type[BaseSettings]) -> None:
    assert [variable for variable, _default, meaning in described(kind) if not meaning] == []


def test_kafka_is_left_out_where_it_is_never_talked_to() -> None:
    kafka = {f"METERPOST_{name}".upper() for name in KafkaSettings.model_fields}
    assert kafka.isdisjoint(variable for variable, _default, _meaning in described(ApiSettings))
    assert kafka <= {variable for variable, _default, _meaning in described(IngestSettings)}
