"""The Dockerfile: what the image gets is enough to run every process, and is no more than that."""

import ast
import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from services.platform.health import Health
from services.platform.telemetry import start_health_server
from tests.support.compose import (
    REPOSITORY,
    copied_paths,
    health_command,
    image_environment,
    instructions,
    lay_out_image,
)

CHECKS = [
    ["-m", "services.ingest", "--check-config"],
    ["-m", "services.windowing", "--check-config"],
    ["-m", "services.api", "--check-config"],
    *(["-m", "services.delivery", name, "--check-config"] for name in ("https", "sftp", "ftps")),
    ["-m", "services.exports", "--check-config"],
    ["-m", "services.dropbox", "--check-config"],
    ["-m", "services.local.fleet", "--check-config"],
    ["-m", "services.local.seed_demo", "--check-config"],
    ["-m", "services.local.https_receiver", "--help"],
    ["-m", "services.cli", "--help"],
]
# These start servers on a machine of one's own, by programs that the image does not have.
EMBEDDED = ("services.local.kafka_", "services.local.postgres_", "services.local.stack", "services.local.ftps_receiver")
RUN_S = 60


def _image_variables() -> dict[str, str]:
    # Only what the image sets, and the path to no installed copy of the code.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("METERPOST_", "PYTHON"))}
    return kept | {key: value for key, value in image_environment().items() if key != "PATH"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    lay_out_image(folder)
    return folder


def _run(image: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the image's files are, in the image's environment."""
    command = [sys.executable, *arguments]
    variables = _image_variables()
    return subprocess.run(command, cwd=image, env=variables, capture_output=True, text=True, timeout=RUN_S, check=False)


@pytest.mark.parametrize("arguments", CHECKS, ids=lambda arguments: arguments[1])
def test_what_is_copied_is_enough_to_start(image: Path, arguments: list[str]) -> None:
    done = _run(image, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_code_that_runs_is_the_copied_one(image: Path) -> None:
    done = _run(image, "-c", "import services; print(services.__file__)")
    assert Path(done.stdout.strip()) == image / "services" / "__init__.py"


def test_what_is_read_at_run_time_is_there(image: Path) -> None:
    read = "from services.platform import migrations, topics\nprint(topics.TOPICS_FILE, migrations.SCRIPTS)"
    read += "\nprint(len(topics.load_topics()))"
    done = _run(image, "-c", read)
    topics_file, scripts, count = done.stdout.split()
    assert Path(topics_file) == image / "schemas" / "topics.yaml"
    assert int(count) >= 5
    assert Path(scripts) == image / "schemas" / "postgres"
    assert sorted(path.name for path in Path(scripts).glob("*.sql")) == sorted(
        path.name for path in (REPOSITORY / "schemas" / "postgres").glob("*.sql")
    )


def test_every_library_that_the_services_import_is_pinned_for_the_image() -> None:
    lines = (REPOSITORY / "requirements" / "base.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if "==" in line and not line.startswith((" ", "#"))}
    providers = importlib.metadata.packages_distributions()
    imported = {name for file in _of_the_image() for name in _third_party(file)}
    missing = {name for name in imported if pinned.isdisjoint(map(_normal, providers.get(name, [])))}
    assert missing == set()


def _of_the_image() -> list[Path]:
    files = (REPOSITORY / "services").rglob("*.py")
    return [file for file in files if file.name != "ftps_receiver.py"]  # of EMBEDDED, the one with a library of its own


def _third_party(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"services", "schemas"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.split("[", maxsplit=1)[0].strip()).lower()


def test_no_process_of_the_image_loads_the_embedded_servers(image: Path) -> None:
    modules = [arguments[1] for arguments in CHECKS]
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint(*sys.modules)"
    loaded = _run(image, "-c", code).stdout.split()
    assert set(modules) <= set(loaded)
    assert [name for name in loaded if name.startswith(EMBEDDED)] == []


def test_the_image_is_pinned_non_root_and_labelled() -> None:
    (base,) = [text for text in instructions("ARG") if text.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.(11|12|13)-slim-[a-z]+", base)
    assert [text.split()[0] for text in instructions("FROM")] == ["${PYTHON_IMAGE}"] * 2
    user = instructions("USER")[-1]
    assert re.fullmatch(r"[1-9][0-9]+:[1-9][0-9]+", user)
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"VERSION={version}" in instructions("ARG")
    labels = " ".join(instructions("LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_dependencies_are_installed_by_hash_from_the_base_set_alone() -> None:
    installs = [text for text in instructions("RUN") if " install " in text]
    assert len(installs) == 1
    for option in ("--require-hashes", "--only-binary :all:", "-r requirements/base.txt"):
        assert option in installs[0]
    assert copied_paths() == ["requirements/base.txt", "services", "schemas", "LICENSE"]


def test_only_what_is_copied_is_sent_to_the_engine() -> None:
    rules = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(copied_paths())


def test_no_secret_is_in_the_image() -> None:
    names = [*image_environment(), *(text.split("=")[0] for text in instructions("ARG"))]
    assert not [name for name in names if re.search("PASS|SECRET|TOKEN|KEY|URL", name)]
    copied = [file for path in ("services", "schemas") for file in (REPOSITORY / path).rglob("*")]
    assert not [file for file in copied if any(fnmatch(file.name, kind) for kind in ("*.pem", "*.key", ".env*"))]


async def test_the_health_check_asks_whether_the_service_is_ready() -> None:
    health = Health()
    runner, port = await start_health_server(health, "127.0.0.1", 0)
    try:
        health.started()
        health.waits_for("Kafka")
        assert await _check_health(port) == (1, "waiting for Kafka")
        health.answered("Kafka")
        assert await _check_health(port) == (0, "")
    finally:
        await runner.cleanup()
    code, said = await _check_health(port)
    assert code == 1
    assert "refused" in said
    assert "Traceback" not in said


async def _check_health(port: int) -> tuple[int | None, str]:
    program, *arguments = health_command()
    assert program == "python"
    environment = {**os.environ, "METERPOST_HEALTH_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _out, said = await process.communicate()
    return process.returncode, said.decode().strip()
