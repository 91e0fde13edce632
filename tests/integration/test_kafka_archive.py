"""The archive by which Java starts Kafka sooner: made once, and left aside by Java wherever it is of no use."""

import subprocess
from pathlib import Path
from threading import Event

import pytest

from services.local.errors import LocalServerError
from services.local.kafka_archive import make_class_archive
from services.local.kafka_libraries import archive_name, class_archive, ensure_kafka_libraries, find_java
from services.local.kafka_server import KafkaServer
from tests.support.stack import JAVA_FLAGS


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give Kafka's libraries in a folder of one's own, with an archive made there."""
    folder = tmp_path_factory.mktemp("libraries")
    for jar in ensure_kafka_libraries().glob("*.jar"):
        (folder / jar.name).symlink_to(jar)
    make_class_archive(folder, Event())
    return folder


def test_a_broker_that_starts_uses_it(libraries: Path, tmp_path: Path) -> None:
    archive = class_archive(libraries)
    assert [entry for entry in libraries.iterdir() if entry.suffix != ".jar"] == [archive]
    server = KafkaServer(data_folder=tmp_path / "kafka", libraries=libraries, java_flags=JAVA_FLAGS)
    server.start()
    try:
        assert str(archive) in Path(f"/proc/{server.pid}/maps").read_text(encoding="ascii")
    finally:
        server.stop()


def test_one_that_was_cut_off_is_not_given_to_java(libraries: Path, tmp_path: Path) -> None:
    own = _copied(libraries, tmp_path)
    whole = _archive(libraries)
    (own / whole.name).write_bytes(whole.read_bytes()[:-1])
    assert class_archive(own) is None
    assert _said_by_java(own, tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"no archive" * 100_000], ids=["empty", "something else"])
def test_java_says_nothing_of_what_is_none(libraries: Path, tmp_path: Path, content: bytes) -> None:
    own = _copied(libraries, tmp_path)
    (own / archive_name(len(content))).write_bytes(content)
    assert class_archive(own) is not None
    assert _said_by_java(own, tmp_path) == []


def test_java_says_nothing_of_one_that_was_made_of_other_libraries(libraries: Path, tmp_path: Path) -> None:
    own = _copied(libraries, tmp_path)
    archive = _archive(libraries)
    (own / archive.name).symlink_to(archive)
    assert class_archive(own) is not None
    assert _said_by_java(own, tmp_path) == []


def test_where_none_can_be_made_there_is_none(tmp_path: Path) -> None:
    make_class_archive(tmp_path, Event())
    assert list(tmp_path.iterdir()) == []


def test_when_everything_ends_none_is_made(tmp_path: Path) -> None:
    ending = Event()
    ending.set()
    with pytest.raises(LocalServerError):
        make_class_archive(tmp_path, ending)
    assert list(tmp_path.iterdir()) == []


def _archive(libraries: Path) -> Path:
    archive = class_archive(libraries)
    assert archive is not None
    return archive


def _copied(libraries: Path, tmp_path: Path) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    for jar in libraries.glob("*.jar"):
        (own / jar.name).symlink_to(jar)
    return own


def _said_by_java(libraries: Path, tmp_path: Path) -> list[str]:
    """Return what Java says besides its version when it is started as for Kafka; it must end well."""
    server = KafkaServer(data_folder=tmp_path / "kafka", libraries=libraries)
    command = [*server._java_command(find_java()), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [
        line for line in (done.stdout + done.stderr).splitlines() if "OpenJDK" not in line and "openjdk" not in line
    ]
