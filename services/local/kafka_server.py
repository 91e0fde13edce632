"""A real Apache Kafka of one node, for this machine alone."""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from services.local.embedded_server import EmbeddedServer
from services.local.errors import LocalServerError
from services.local.kafka_libraries import class_archive, find_java
from services.local.kafka_probe import serving_cluster
from services.local.ports import LOOPBACK, is_port_free, remembered_port
from services.local.processes import ChildProcess
from services.local.programs import run_program

_LOG_CONFIGURATION = Path(__file__).with_name("log4j2.properties")
_FORMAT_TIMEOUT_S = 60
_START_TRIES = 3

# Paths are relative to the data folder, the process's current folder, so that none needs escaping.
_PROPERTIES = """\
# Written at each start; edits are lost.
process.roles=broker,controller
node.id=1
# A fixed quorum rather than one kept in the log: the controller's port may change between two starts.
controller.quorum.voters=1@{host}:{controller_port}
listeners=CLIENTS://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=CLIENTS://{host}:{port}
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENTS
controller.listener.names=CONTROLLER
log.dirs={records}

auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# One node has nobody to wait for.
group.initial.rebalance.delay.ms=0
# Members may ask for sessions shorter than the default of 6 s: whoever dies is then missed sooner.
group.min.session.timeout.ms=1000
# Topics may accept larger records than the default by their own setting; this must let them through.
replica.fetch.max.bytes=8388608
# After a SIGKILL the broker is let in again only when the session of its predecessor is over: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


class KafkaServer(EmbeddedServer):
    """One broker, its own controller; it keeps the records. `java_flags` are added to ours."""

    _data = "Kafka's data"
    _format_options: Sequence[str] = ()

    def __init__(
        self,
        *,
        data_folder: Path,
        libraries: Path,
        port: int | None = None,
        ending: Event | None = None,
        java_flags: Sequence[str] = (),
    ) -> None:
        super().__init__(data_folder, port, ending)
        self._libraries = libraries.resolve()
        self._java_flags = tuple(java_flags)

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients, `127.0.0.1:port`; known from the first start on."""
        if self._port is None:
            raise RuntimeError("Kafka has no address before its first start")
        return f"{LOOPBACK}:{self._port}"

    @property
    def log_file(self) -> Path:
        """Where the broker writes what is wrong."""
        return self._folder / "kafka.log"

    def _start_locked(self, timeout_s: float) -> None:
        java = find_java()
        child = self._child = self._child or self._broker(java)
        child.end_leftover()
        for tries_left in reversed(range(_START_TRIES)):
            port, controller_port = self._choose_ports()
            cluster_id = self._format_when_new(java)
            child.start()
            try:
                self._wait_until_ready(
                    child,
                    lambda: serving_cluster(LOOPBACK, port) == cluster_id,  # noqa: B023  called in this round only
                    timeout_s,
                )
            except LocalServerError:
                child.kill()
                # Was a port taken between its choice and its use? Then others will do.
                if tries_left == 0 or (is_port_free(port) and is_port_free(controller_port)):
                    raise
            else:
                return

    def _choose_ports(self) -> tuple[int, int]:
        port = remembered_port(self._folder / "port.json", configured=self._configured_port)
        controller_port = remembered_port(self._folder / "controller_port.json", configured=None, other_than=port)
        self._write_properties("server.properties", port=port, controller_port=controller_port)
        self._port = port
        return port, controller_port

    def _write_properties(self, name: str, *, port: int, controller_port: int, records: str = "records") -> None:
        text = _PROPERTIES.format(host=LOOPBACK, port=port, controller_port=controller_port, records=records)
        (self._folder / name).write_text(text, encoding="ascii")

    def _format_when_new(self, java: str) -> str:
        """Return the id of the cluster in the data folder, after making a new one if there is none."""
        records = self._folder / "records"
        if not records.is_dir():
            # Under another name first: a folder of the right name is a complete one.
            partial = self._folder / "records.partial"
            shutil.rmtree(partial, ignore_errors=True)
            self._write_properties("format.properties", port=1, controller_port=2, records=partial.name)
            self._run_format(java)
            partial.replace(records)
        properties = (records / "meta.properties").read_text(encoding="utf-8").splitlines()
        return next(line.partition("=")[2] for line in properties if line.startswith("cluster.id="))

    def _run_format(self, java: str) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        arguments = ["format", f"--cluster-id={cluster_id}", "--config=format.properties", *self._format_options]
        try:
            run_program(
                [*self._java_command(java, "-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", *arguments],
                working_folder=self._folder,
                timeout_s=_FORMAT_TIMEOUT_S,
                ending=self._ending,
            )
        except subprocess.CalledProcessError as error:
            said = str(error.stdout).strip()
            raise LocalServerError(f"Kafka could not prepare its data folder {self._folder}:\n{said}") from error
        except subprocess.TimeoutExpired as error:
            raise LocalServerError(
                f"Kafka did not prepare its data folder {self._folder} within {_FORMAT_TIMEOUT_S} seconds."
            ) from error

    def _broker(self, java: str) -> ChildProcess:
        # The serial collector starts faster than the default one and suits a small heap on few cores.
        flags = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", *self._java_flags)
        return ChildProcess(
            name="Kafka",
            command=[*self._java_command(java, *flags), "kafka.Kafka", "server.properties"],
            log_file=self.log_file,
            pid_file=self._folder / "kafka.pid",
            working_folder=self._folder,
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGTERM,
        )

    def _java_command(self, java: str, *flags: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={_LOG_CONFIGURATION.as_uri()}"
        archive = class_archive(self._libraries)
        # Nobody need hear of one that is left aside, because it is of another Java.
        archived = [] if archive is None else [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds*=off"]
        return [java, *flags, *archived, logging, "-Djava.awt.headless=true", "-cp", f"{self._libraries}/*"]
