"""What is said when the tools for the embedded Kafka are missing or fail."""

from pathlib import Path

import pytest

from services.local.errors import LocalServerError
from services.local.kafka_libraries import ensure_kafka_libraries, find_java

EXISTING = r"or set KAFKA=host:port \(METERPOST_KAFKA_BOOTSTRAP_SERVERS\)"


def _program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the only folder of programs there is, with a suitable Java in it."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    _program(tmp_path / "programs", "java", """echo 'openjdk version "21.0.2" 2024-01-16' >&2""")
    return tmp_path / "programs"


def test_missing_java_is_told_in_one_sentence(programs: Path) -> None:
    (programs / "java").unlink()
    with pytest.raises(LocalServerError, match=rf"^Java is not found on PATH: .*openjdk-17.*, {EXISTING}[^\n]*$"):
        find_java()


def test_old_java_is_told(programs: Path) -> None:
    _program(programs, "java", """echo 'openjdk version "1.8.0_402"' >&2""")
    with pytest.raises(LocalServerError, match=rf"is Java 1\.8\.0_402: install Java 17 or newer .*, {EXISTING}"):
        find_java()


def test_missing_maven_is_told_in_one_sentence(programs: Path, tmp_path: Path) -> None:
    assert (programs / "java").exists()
    with pytest.raises(LocalServerError, match=rf"^Maven, .*apt install maven.*, {EXISTING}[^\n]*$"):
        ensure_kafka_libraries(tmp_path / "tools")


def test_failing_maven_is_told_and_leaves_nothing_that_looks_complete(programs: Path, tmp_path: Path) -> None:
    _program(programs, "mvn", 'echo "[ERROR] Could not transfer artifact: Connection refused"; exit 1')
    with pytest.raises(LocalServerError, match=rf"\(Could not transfer artifact: .*{EXISTING}"):
        ensure_kafka_libraries(tmp_path / "tools")
    assert [entry.name for entry in (tmp_path / "tools").iterdir()] == ["lock"]


def test_maven_is_needed_once(programs: Path, tmp_path: Path) -> None:
    script = 'for word; do case $word in -DoutputDirectory=*) /bin/mkdir -p "${word#*=}";; esac; done'
    _program(programs, "mvn", script)
    libraries = ensure_kafka_libraries(tmp_path / "tools")
    (programs / "mvn").unlink()

    assert ensure_kafka_libraries(tmp_path / "tools") == libraries
    assert list(libraries.iterdir()) == [], "this Java makes no archive"
