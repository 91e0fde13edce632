"""The classes of Kafka as Java keeps them ready: a broker then starts with half the work."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from threading import Event

from services.local.errors import LocalServerError
from services.local.kafka_libraries import archive_name, find_java
from services.local.kafka_server import KafkaServer
from services.local.programs import run_program

_STOP_TIMEOUT_S = 30.0
_CHECK_TIMEOUT_S = 30


def make_class_archive(libraries: Path, ending: Event) -> None:
    """Put the archive beside the libraries, from a broker that starts and ends. Blocks for some seconds.

    Where that fails there is none, and nothing else is different. Raises LocalServerError soon after `ending` is set.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".archive-", dir=libraries) as folder:
            made = Path(folder) / "made"
            server = KafkaServer(
                data_folder=Path(folder) / "kafka",
                libraries=libraries,
                ending=ending,
                java_flags=[f"-XX:ArchiveClassesAtExit={made}"],
            )
            server.start()
            server.stop(_STOP_TIMEOUT_S)
            # Java ends with an error when it is told to rely on an archive that it cannot use.
            relying = ["-Xshare:on", f"-XX:SharedArchiveFile={made}", "-cp", f"{libraries}/*", "-version"]
            run_program([find_java(), *relying], timeout_s=_CHECK_TIMEOUT_S, ending=ending)
            made.replace(libraries / archive_name(made.stat().st_size))
    except (LocalServerError, OSError, subprocess.SubprocessError):
        if ending.is_set():
            raise
