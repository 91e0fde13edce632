"""The Java program and the libraries of the embedded Kafka, brought by Maven once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from threading import Event

from services.local.errors import LocalServerError
from services.local.folder_lock import FolderLock
from services.local.programs import run_program

DEFAULT_TOOLS_FOLDER = Path(__file__).resolve().parents[2] / ".tools"

_POM = Path(__file__).with_name("pom.xml")
_MINIMUM_JAVA = 17
_JAVA_TIMEOUT_S = 30
_MAVEN_TIMEOUT_S = 900
_OR_EXISTING_KAFKA = "or set KAFKA=host:port (METERPOST_KAFKA_BOOTSTRAP_SERVERS) to use an existing Kafka."


def ensure_kafka_libraries(tools_folder: Path = DEFAULT_TOOLS_FOLDER, ending: Event | None = None) -> Path:
    """Return the folder with Kafka's jar files, after having Maven fetch them if they are not there yet.

    Blocks: for some seconds the first time, and while another process does the same. Raises LocalServerError
    when Java is missing, when the jar files are and Maven is missing or fails, and soon after `ending` is set.
    """
    find_java()
    ending = ending or Event()
    key = hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    libraries = tools_folder / f"kafka-{key}"
    if libraries.is_dir():
        return libraries
    try:
        tools_folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(tools_folder, ending):
            if not libraries.is_dir():
                _fetch_into(libraries, ending)
                from services.local.kafka_archive import make_class_archive  # noqa: PLC0415 - needs what is fetched

                make_class_archive(libraries, ending)
    except OSError as error:
        raise LocalServerError(f"Kafka's libraries cannot be kept in {tools_folder}: {error.strerror}.") from error
    return libraries


def class_archive(libraries: Path) -> Path | None:
    """Return the file by which Java starts Kafka sooner, if there is a whole one (see `kafka_archive`).

    Its name tells its size: Java leaves aside what is of another Java, of other libraries, or no archive at all, but it
    crashes over one that was cut off.
    """
    for archive in libraries.glob("classes-*.jsa"):
        if archive.name == archive_name(archive.stat().st_size):
            return archive
    return None


def archive_name(byte_count: int) -> str:
    """Return what an archive of this size is called."""
    return f"classes-{byte_count}.jsa"


def find_java() -> str:
    """Return the Java program: of JAVA_HOME if that is set, otherwise of PATH. LocalServerError if unsuitable."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    install = f"install Java {_MINIMUM_JAVA} or newer (Debian: apt install openjdk-17-jre-headless)"
    if java is None:
        where = f"under JAVA_HOME={home}" if home else "on PATH"
        raise LocalServerError(f"Java is not found {where}: {install}, {_OR_EXISTING_KAFKA}")
    try:
        shown = subprocess.run(
            [java, "-version"], capture_output=True, text=True, check=True, timeout=_JAVA_TIMEOUT_S
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise LocalServerError(f"{java} does not run ({error}): {install}, {_OR_EXISTING_KAFKA}") from error
    version = re.search(r'version "((\d+)[^"]*)"', shown)
    if version is None or int(version[2]) < _MINIMUM_JAVA:
        told = version[1] if version else "of unknown version"
        raise LocalServerError(f"{java} is Java {told}: {install}, {_OR_EXISTING_KAFKA}")
    return java


def _fetch_into(libraries: Path, ending: Event) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalServerError(
            "Maven, which fetches Kafka once, is not found on PATH: install it (Debian: apt install maven), "
            + _OR_EXISTING_KAFKA
        )
    # A folder that is there is complete: it gets its name last.
    partial = libraries.with_name(f"{libraries.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
    try:
        run_program(
            [maven, "-q", "-B", "--strict-checksums", "-f", str(_POM), *goal], timeout_s=_MAVEN_TIMEOUT_S, ending=ending
        )
    except subprocess.TimeoutExpired:
        raise LocalServerError(
            f"Maven did not fetch Kafka within {_MAVEN_TIMEOUT_S} seconds: try again, {_OR_EXISTING_KAFKA}"
        ) from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stdout.splitlines() if "ERROR" in line][:1]
        reason = said[0].replace("[ERROR]", "").strip() if said else f"exit code {error.returncode}"
        raise LocalServerError(f"Maven could not fetch Kafka ({reason}): try again, {_OR_EXISTING_KAFKA}") from None
    partial.replace(libraries)
