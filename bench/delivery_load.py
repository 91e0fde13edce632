"""What the delivery bench delivers: closed windows of a catalog of meters, jobs for them, and receivers."""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from asyncpg import Connection

from bench.servers import Servers
from services.api.job_settings import JobSettings, NewJob, https_settings
from services.api.job_store import create_job
from services.local.certificates import ensure_certificates
from services.local.demo_receivers import file_receivers
from services.local.ports import LOOPBACK, free_port
from services.local.processes import ChildProcess
from services.local.supervised import Service
from services.platform.clock import SystemClock
from services.platform.postgres import connect_pool
from services.platform.secrets import Vault, ensure_key_file, read_keys

T0 = datetime(2026, 11, 20, tzinfo=UTC)
READY_SECONDS = 20.0
INPUTS = 20
"""Of a logger; each counts for a meter."""


@dataclass(frozen=True)
class Windows:
    """Closed windows in which each meter of an organization of their own has a row."""

    organization_id: int
    meters: int
    count: int
    resolution_minutes: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.meters * self.count

    @property
    def end(self) -> datetime:
        """When the last window ends."""
        return T0 + self.count * self.resolution_minutes * timedelta(minutes=1)

    @property
    def first_meter_id(self) -> int:
        """The meters' ids follow one another."""
        return self.organization_id * 10_000_000


@dataclass(frozen=True)
class Target:
    """A receiver that is to be started, and what a job says of it."""

    transport: str
    service: Service
    settings: dict[str, Any]
    secrets: dict[str, str]
    folder: Path

    @contextmanager
    def running(self) -> Iterator[ChildProcess]:
        """Run the receiver; what it received is removed afterwards."""
        process = self.service.process
        process.log_file.parent.mkdir(parents=True, exist_ok=True)
        process.start()
        try:
            _await_port(process, self.settings)
            yield process
        finally:
            process.stop(5)
            shutil.rmtree(self.folder, ignore_errors=True)


def targets(folder: Path) -> dict[str, Target]:
    """Return the receivers, by transport; those of `make run`."""
    for name in ("logs", "run", "received"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    certificates = ensure_certificates(folder / "certificates", SystemClock().now())
    port, https_folder = free_port(), folder / "received" / "https"
    arguments = [
        "services.local.https_receiver",
        *("--folder", str(https_folder), "--port", str(port)),
        *("--certificate", str(certificates.server), "--key", str(certificates.server_key)),
    ]
    settings = https_settings(f"https://localhost:{port}/bench", certificates.authority.read_text(encoding="ascii"))
    https = Target("https", Service("receiver-https", arguments, folder, {}), settings, {}, https_folder)
    https_folder.mkdir(exist_ok=True)
    found = {"https": https}
    for one in file_receivers(folder, certificates):
        found[one.transport] = Target(one.transport, one.service, one.settings, one.secrets, one.folder)
    return {name: found[name] for name in ("https", "sftp", "ftps")}


def vault(folder: Path) -> tuple[Vault, Path]:
    """Return what seals the bench's secrets, and the file of its key."""
    file = folder / "secret-keys"
    ensure_key_file(file, "bench")
    return Vault(read_keys(file)), file


async def add_jobs(
    on: Servers, target: Target, organization_ids: list[int], frequency: int, resolution: int, starts_at: datetime
) -> list[int]:
    """Add a job for each of the organizations; return their ids."""
    sealing, _file = vault(on.folder)
    pool = await connect_pool(on.database_url, max_size=1)
    try:
        jobs = []
        for number, organization_id in enumerate(organization_ids, start=1):
            settings = JobSettings(f"Job {number}", frequency, resolution, None, target.transport, target.settings)
            new = NewJob(organization_id, settings, starts_at, target.secrets)
            jobs.append((await create_job(pool, new, SystemClock().now(), sealing)).job_id)
        return jobs
    finally:
        await pool.close()


async def add_catalog(connection: Connection, windows: Windows) -> None:
    """Add the organization, with fifty meters a site; half of the meters measure electricity, the rest gas or water."""
    first, last = windows.first_meter_id, windows.first_meter_id + windows.meters - 1
    organization = windows.organization_id
    await connection.execute(
        f"""
        UPDATE catalog_revision SET revision = 1;
        INSERT INTO organization (organization_id, name, revision)
            VALUES ({organization}, 'Bench {organization}', 1);
        INSERT INTO site (site_id, organization_id, revision)
            SELECT n, {organization}, 1 FROM generate_series({first} / 50, {last} / 50) AS n;
        INSERT INTO site_description (site_id, valid_from, revision, name, time_zone)
            SELECT n, '-infinity', 1, 'Site ' || n, 'UTC' FROM generate_series({first} / 50, {last} / 50) AS n;
        INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision)
            SELECT n, {organization}, (ARRAY['Gas', 'Water', 'Electricity', 'Electricity'])[n % 4 + 1],
                   (ARRAY['gas', 'water', 'electricity', 'electricity'])[n % 4 + 1], 1
            FROM generate_series({first}, {last}) AS n;
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse,
                                         calorific_value)
            SELECT n, '-infinity', 1, 'Meter ' || n, n / 50, CASE WHEN n % 4 < 2 THEN 'm3' ELSE 'kWh' END, 0.001,
                   CASE WHEN n % 4 = 0 THEN 11.2 END
            FROM generate_series({first}, {last}) AS n;
        INSERT INTO device (device_id, organization_id, kind, revision)
            SELECT 'LG-' || n, {organization}, 'logger', 1
            FROM generate_series({first} / {INPUTS}, {last} / {INPUTS}) AS n;
        INSERT INTO input_attachment (device_id, input, valid_from, revision, meter_id)
            SELECT 'LG-' || n / {INPUTS}, n % {INPUTS} + 1, '-infinity', 1, n
            FROM generate_series({first}, {last}) AS n;
        """  # noqa: S608 - numbers of ours
    )


async def fill(url: str, windows: Windows) -> None:
    """Store the rows of the windows, in a partition of their own; the values of neighbours differ."""
    minutes = windows.resolution_minutes
    connection = await asyncpg.connect(url)
    await add_catalog(connection, windows)
    await connection.execute(
        f"""
        CREATE UNLOGGED TABLE measurement_bench_{minutes} (LIKE measurement INCLUDING DEFAULTS);
        INSERT INTO measurement_bench_{minutes} (window_start, meter_id, organization_id, resolution_minutes,
                                                 intervals_present, intervals_expected, pulses, energy_wh, volume)
        SELECT '{T0.isoformat()}'::timestamptz + w * interval '{minutes} minutes', n, {windows.organization_id},
               {minutes}, {minutes}, {minutes}, pulses,
               CASE n % 4 WHEN 1 THEN NULL WHEN 0 THEN pulses * 11.2 ELSE pulses * 0.37 END,
               CASE n % 4 WHEN 0 THEN pulses * 0.0125 WHEN 1 THEN pulses * 0.001 END
        FROM generate_series(0, {windows.count - 1}) AS w,
             generate_series({windows.first_meter_id}, {windows.first_meter_id + windows.meters - 1}) AS n,
             LATERAL (SELECT (n::bigint * 7919 + w * 104729) % 999983 AS pulses) AS of_it;
        ALTER TABLE measurement_bench_{minutes}
            ADD PRIMARY KEY (resolution_minutes, window_start, organization_id, meter_id);
        ALTER TABLE measurement_{minutes}m ATTACH PARTITION measurement_bench_{minutes}
            FOR VALUES FROM ('{T0.isoformat()}') TO ('{(T0 + timedelta(days=1)).isoformat()}');
        """  # noqa: S608 - numbers of ours
    )
    await connection.execute(f"VACUUM (ANALYZE) measurement_bench_{minutes}")
    await connection.execute("ANALYZE meter, meter_configuration, site_description, device, input_attachment")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def copy_out(url: str, windows: Windows) -> float:
    """Return rows/s at which COPY alone gives the same twelve columns as CSV, in the same order; nothing keeps them."""
    query = """
        SELECT m.meter_id, t.meter_type, c.name, c.unit, m.window_start, m.resolution_minutes, c.site_id, s.name,
               round(m.energy_wh * $4, 2), round(m.energy_wh, 2), round(m.volume * $4, 2), round(m.volume, 2)
        FROM measurement m
        JOIN meter t ON t.meter_id = m.meter_id
        JOIN meter_configuration c ON c.meter_id = m.meter_id
        JOIN site_description s ON s.site_id = c.site_id
        WHERE m.resolution_minutes = $1 AND m.window_start >= $2 AND m.organization_id = $3
        ORDER BY m.window_start, m.meter_id
    """

    async def take(_data: bytes) -> None:
        pass

    connection = await asyncpg.connect(url)
    found = []
    for _time in range(3):
        started = time.perf_counter()
        of = (windows.resolution_minutes, T0, windows.organization_id, 60 // windows.resolution_minutes)
        status = await connection.copy_from_query(query, *of, output=take, format="csv")
        found.append(int(status.split()[1]) / (time.perf_counter() - started))
    await connection.close()
    return max(found)


async def set_closed(url: str, windows: Windows, until: datetime) -> None:
    """Say until when the windows are closed."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO window_closed VALUES ($1, $2, $3) "
        "ON CONFLICT (resolution_minutes) DO UPDATE SET closed_until = excluded.closed_until",
        windows.resolution_minutes, T0, until,
    )  # fmt: skip
    await connection.close()


def _await_port(process: ChildProcess, settings: dict[str, Any]) -> None:
    port = settings["port"] if "port" in settings else int(settings["url"].rsplit(":", 1)[1].split("/")[0])
    ends = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            if time.monotonic() > ends or not process.is_running:
                raise SystemExit(process.log_tail()) from None
            time.sleep(0.05)
        else:
            return
