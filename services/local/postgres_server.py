"""A real PostgreSQL, for this machine alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

from services.local.embedded_server import EmbeddedServer
from services.local.errors import LocalServerError
from services.local.identity import end_noted_process
from services.local.ports import LOOPBACK, is_port_free, remembered_port
from services.local.postgres_binaries import PostgresInstallation, find_postgres
from services.local.postgres_cluster import (
    SUPERUSER,
    Cluster,
    cluster_files,
    open_cluster,
    remove_cluster,
    server_environment,
)
from services.local.postgres_leftovers import claimed_by, end_servers_on, remove_stale_claim
from services.local.processes import ChildProcess

DEFAULT_DATABASE = "meterpost"

_SQL_TIMEOUT_S = 120
_LEFTOVER_TIMEOUT_S = 10.0
_START_TRIES = 3

# PostgreSQL's "fast" shutdown: open transactions are rolled back, the data is left tidy.
_STOP_SIGNAL = signal.SIGINT

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "jit": "off",  # our statements are short, compiling them would cost more than it gains
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
    "log_checkpoints": "off",
}


class PostgresServer(EmbeddedServer):
    """One PostgreSQL server with password and a default database.

    As root the bulk of the data lies elsewhere than in `data_folder`, see postgres_cluster; `clusters`, a folder that
    the server's user can enter, takes it instead when given. `settings` are added to ours and win over them.
    """

    _data = "The database"

    def __init__(
        self,
        *,
        data_folder: Path,
        port: int | None = None,
        ending: Event | None = None,
        clusters: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_folder, port, ending)
        self._clusters = clusters
        self._settings = {**_SETTINGS, **(settings or {})}
        self._installation: PostgresInstallation | None = None
        self._cluster: Cluster | None = None

    def url(self, database: str = DEFAULT_DATABASE) -> str:
        """Return the address of a database, with the password; known from the first start on."""
        if self._cluster is None or self._port is None:
            raise RuntimeError("PostgreSQL has no address before its first start")
        return f"postgresql://{SUPERUSER}:{self._cluster.password}@{LOOPBACK}:{self._port}/{database}"

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        return self._folder / "postgres.log"

    def destroy(self) -> None:
        """End the server if it runs and remove its data, wherever it lies, and the data folder."""
        # In good order: a killed server leaves its shared memory to the next one on the same data, and none comes.
        self.stop()
        if self._installation is not None:
            remove_cluster(self._folder, self._installation)
        self._cluster = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def run_sql(self, statement: str, *, database: str = "postgres") -> str:
        """Run one statement as superuser and return its rows, unaligned and tab-separated. Blocks.

        For setting databases up, not for the product's data. LocalServerError with the server's own words when
        the statement fails.
        """
        if self._installation is None or self._cluster is None:
            raise RuntimeError("PostgreSQL has not been started")
        address = [f"--host={LOOPBACK}", f"--port={self._port}", f"--username={SUPERUSER}", f"--dbname={database}"]
        form = ["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--quiet", "--field-separator=\t"]
        done = subprocess.run(
            [str(self._installation.programs / "psql"), *address, *form, f"--command={statement}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SQL_TIMEOUT_S,
            env={**server_environment(), "PGPASSWORD": self._cluster.password},
        )
        if done.returncode != 0:
            raise LocalServerError(f"PostgreSQL refused a statement: {done.stderr.strip()}")
        return done.stdout.rstrip("\n")

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Create a database, as a copy of `template`'s files if given; nobody may be connected to that one."""
        copy_of = "" if template is None else f' TEMPLATE "{template}" STRATEGY FILE_COPY'
        self.run_sql(f'CREATE DATABASE "{name}"{copy_of}')

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, breaking its connections off."""
        self.run_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _start_locked(self, timeout_s: float) -> None:
        installation = find_postgres()
        if self._clusters is not None:
            installation = replace(installation, shared_folder=self._clusters)
        self._installation = installation
        end_noted_process(self._pid_file, stop_signal=_STOP_SIGNAL, timeout_s=_LEFTOVER_TIMEOUT_S)
        end_servers_on(cluster_files(self._folder, installation))
        cluster = self._cluster = open_cluster(self._folder, installation, self._ending)
        remove_stale_claim(cluster.files)
        for tries_left in reversed(range(_START_TRIES)):
            port = self._port = remembered_port(self._folder / "port.json", configured=self._configured_port)
            child = self._child = self._server(installation, cluster, port)
            child.start()
            try:
                self._wait_until_ready(child, lambda: claimed_by(cluster.files) == (self.pid, "ready"), timeout_s)
            except LocalServerError:
                child.kill()
                # Was the port taken between its choice and its use? Then another one will do.
                if tries_left == 0 or is_port_free(port):
                    raise
            else:
                break
        if not self.run_sql(f"SELECT 1 FROM pg_database WHERE datname = '{DEFAULT_DATABASE}'"):  # noqa: S608  constant
            self.create_database(DEFAULT_DATABASE)

    def _after_end(self) -> None:
        if self._cluster is not None and self._lock.is_held:
            end_servers_on(self._cluster.files)
        super()._after_end()

    @property
    def _pid_file(self) -> Path:
        return self._folder / "postgres.pid"

    def _server(self, installation: PostgresInstallation, cluster: Cluster, port: int) -> ChildProcess:
        settings = {**self._settings, "port": str(port)}
        return ChildProcess(
            name="PostgreSQL",
            command=[
                str(installation.programs / "postgres"),
                *("-D", str(cluster.files)),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            log_file=self.log_file,
            pid_file=self._pid_file,
            working_folder=cluster.home,
            environment=server_environment(),
            account=installation.account,
            stop_signal=_STOP_SIGNAL,
            death_signal=_STOP_SIGNAL,
        )
