"""Everything that `make run` starts, in order, and how it ends."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import aiohttp

from services.local.api_client import ensure_api_client
from services.local.background import Background
from services.local.certificates import CertificateFiles, ensure_certificates
from services.local.demo_catalog import ORGANIZATION, Destination
from services.local.demo_hosted import HostedDemo, hosted_demo
from services.local.demo_receivers import FileReceiver, ensure_signing_secret, file_receivers
from services.local.endpoints import Endpoints, remove_endpoints
from services.local.errors import LocalServerError
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.ports import LOOPBACK, remembered_port
from services.local.postgres_server import PostgresServer
from services.local.seed_demo import seed_demo
from services.local.settings import LocalSettings
from services.local.supervised import Service, stop_all
from services.platform.clock import Clock
from services.platform.export_store import EXPORT_STORE_VARIABLE, folder_url
from services.platform.kafka_access import SECURITY_VARIABLES, KafkaAccess
from services.platform.kafka_admin import Admin
from services.platform.migrations import upgrade
from services.platform.postgres import Pool, connect_pool
from services.platform.secret_settings import SecretSettings
from services.platform.secrets import Vault, ensure_key_file
from services.platform.settings import ENVIRONMENT_PREFIX, KafkaSettings, load
from services.platform.topics import for_replay, load_topics

READY_TIMEOUT_S = 60.0
# Ctrl-C ends everything within 10 s, whatever does not end by itself.
START_STOP_S = 1.5
SERVICE_STOP_S = 3.5
SERVER_STOP_S = 4.0


@dataclass
class Stack:
    """One instance of the product on this machine."""

    settings: LocalSettings
    clock: Clock
    say: Callable[[str], None]
    kafka: KafkaServer | None = None
    postgres: PostgresServer | None = None
    services: list[Service] = field(default_factory=list)
    receivers: list[Service] = field(default_factory=list)
    """Those of the services that have no health address: they are the customer's, not ours."""
    pool: Pool | None = None
    api_url: str = ""
    endpoints: Endpoints | None = None
    background: Background = field(default_factory=Background)
    ending: Event = field(default_factory=Event)
    """Set when everything is to end: nothing is started any more, and starts that are under way fail soon."""

    @property
    def folder(self) -> Path:
        """Where everything of this instance is kept."""
        return self.settings.data_folder

    @property
    def secret_keys_file(self) -> Path | None:
        """Where the keys are that seal secrets in the database; None: the environment tells."""
        is_told = any(os.environ.get(f"{ENVIRONMENT_PREFIX}{name}") for name in ("SECRET_KEYS", "SECRET_KEYS_FILE"))
        return None if is_told else self.folder / "secret-keys"

    @property
    def export_store_url(self) -> str:
        """Where the files of manual exports are kept."""
        return os.environ.get(EXPORT_STORE_VARIABLE) or folder_url(self.folder / "exports")

    async def start(self) -> None:
        """Bring everything up. Raises LocalServerError or a MeterpostError that says what to do."""
        for name in ("logs", "run", "received/https", "received/sftp", "received/ftps", "received/hosted"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        remove_endpoints(self.folder)
        if self.secret_keys_file is not None:
            ensure_key_file(self.secret_keys_file, "demo")
        self.say("starting Kafka and PostgreSQL")
        kafka, database = await asyncio.gather(
            self.background.call(self._start_kafka), self.background.call(self._start_postgres)
        )
        self.say("bringing the schema and the topics up to date")
        await self.background.call(lambda: upgrade(database))
        await self._declare_topics(kafka)
        self.pool = await connect_pool(database, max_size=2)
        certificates = ensure_certificates(self.folder / "certificates", self.clock.now())
        receiver, url = self._receiver(certificates)
        files = file_receivers(self.folder, certificates)
        hosted = hosted_demo(self.folder)
        secret_file = self.folder / "certificates" / "signing-secret"
        ca_pem = certificates.authority.read_text(encoding="ascii")
        await self._seed(self.pool, Destination(url, ca_pem, ensure_signing_secret(secret_file)), files, hosted)
        client_file = await ensure_api_client(self.pool, self.folder / "api-client.json", self.clock.now())
        self.api_url = f"http://{LOOPBACK}:{remembered_port(self.folder / 'api-port.json', configured=None)}"
        self.receivers = [receiver, *(file.service for file in files), hosted.customer()]
        self.services = [*self.receivers, *self._services(kafka, database, hosted)]
        self.say("starting " + ", ".join(service.name for service in self.services))
        for service in self.services:
            service.process.start()
        await self._until_ready()
        self.endpoints = Endpoints(
            kafka=kafka.bootstrap_servers,
            kafka_security_protocol=kafka.security_protocol,
            database=database,
            receiver_url=url,
            receiver_ca_file=certificates.authority,
            receiver_folder=self.folder / "received" / "https",
            signing_secret_file=secret_file,
            health={one.name: one.health_address for one in self.services if one not in self.receivers},
            allowed_destinations=self.settings.allowed_destinations,
            file_receivers={file.transport: file.endpoint() for file in files},
            topic_prefix=self.settings.topic_prefix,
            secret_keys_file=self.secret_keys_file,
            hosted_folder=hosted.endpoint(),
            api_url=self.api_url,
            api_client_file=client_file,
            export_store_url=self.export_store_url,
        )
        self.endpoints.write(self.folder)

    def break_off(self) -> None:
        """Make whatever is being started or asked fail soon; call `stop` next. Never blocks."""
        self.ending.set()
        if self.pool is not None:
            with suppress(RuntimeError):  # its event loop may be gone
                self.pool.terminate()

    def stop(self) -> None:
        """End everything, the fleet and the services first; each step under a deadline."""
        remove_endpoints(self.folder)
        self.break_off()
        self.background.join(START_STOP_S)
        stop_all(self.services, SERVICE_STOP_S)
        with ThreadPoolExecutor(2) as threads:
            for server in (self.kafka, self.postgres):
                if server is not None:
                    threads.submit(server.stop, SERVER_STOP_S)

    async def look(self) -> list[str]:
        """Start again whatever has ended; return sentences about it."""
        return await self.background.call(self._look)

    def _look(self) -> list[str]:
        if self.ending.is_set():
            return []
        events = [event for service in self.services if (event := service.look())]
        for name, server in (("Kafka", self.kafka), ("PostgreSQL", self.postgres)):
            if server is not None and not server.is_running:
                events.append(f"{name} ended and is started again")
                try:
                    server.start()
                except LocalServerError as error:
                    events.append(f"{name} did not start: {error}")
        return events

    def _start_kafka(self) -> KafkaAccess:
        address = self.settings.kafka_bootstrap_servers
        if address is not None:
            return load(KafkaSettings, kafka_bootstrap_servers=address).kafka_access()
        libraries = ensure_kafka_libraries(ending=self.ending)
        self.kafka = KafkaServer(data_folder=self.folder / "kafka", libraries=libraries, ending=self.ending)
        self.kafka.start()
        return KafkaAccess(self.kafka.bootstrap_servers)

    def kafka_environment(self, kafka: KafkaAccess) -> dict[str, str]:
        """Return how the services are told of Kafka. The embedded one is in plaintext, whatever ours says."""
        told = {name: os.environ.get(name, "") if self.kafka is None else "" for name in SECURITY_VARIABLES}
        # They run in another folder than we do.
        files = {name: str(Path(file).absolute()) for name, file in told.items() if file and name.endswith("_FILE")}
        return {"METERPOST_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, **told, **files}

    def _start_postgres(self) -> str:
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        self.postgres = PostgresServer(data_folder=self.folder / "postgres", ending=self.ending)
        self.postgres.start()
        return self.postgres.url()

    async def _declare_topics(self, kafka: KafkaAccess) -> None:
        """Declare topics whose readings' arrival the producer sets, so that the past can be replayed."""
        admin = Admin(kafka)
        await admin.start()
        try:
            await admin.declare(map(for_replay, load_topics()), prefix=self.settings.topic_prefix)
        finally:
            await admin.stop()

    async def _seed(self, pool: Pool, to: Destination, files: Sequence[FileReceiver], hosted: HostedDemo) -> None:
        meters = self.settings.meters
        replay = timedelta(hours=self.settings.replay_hours) if self.settings.fleet else None
        now, vault = self.clock.now(), self._vault()
        more: dict[str, Any] = {"files": files, "hosted_customer_key": hosted.customer_key, "vault": vault}
        if await seed_demo(pool, to, meters=meters, replay=replay, now=now, **more):
            self.say(f"created the organization {ORGANIZATION} with {meters:,} meters")

    def _vault(self) -> Vault:
        settings = load(SecretSettings)
        if self.secret_keys_file is not None:
            settings = settings.model_copy(update={"secret_keys_file": self.secret_keys_file})
        return settings.vault()

    def _receiver(self, certificates: CertificateFiles) -> tuple[Service, str]:
        port = remembered_port(self.folder / "receiver-port.json", configured=None)
        arguments = [
            "services.local.https_receiver",
            *("--folder", str(self.folder / "received" / "https")),
            *("--port", str(port)),
            *("--certificate", str(certificates.server)),
            *("--key", str(certificates.server_key)),
        ]
        return Service("receiver-https", arguments, self.folder, {}), f"https://localhost:{port}/meterpost"

    def _services(self, kafka: KafkaAccess, database: str, hosted: HostedDemo) -> list[Service]:
        environment = {
            **hosted.environment,
            **self.kafka_environment(kafka),
            "METERPOST_DATABASE_URL": database,
            "METERPOST_TOPIC_PREFIX": self.settings.topic_prefix,
            "METERPOST_SHUTDOWN_DEADLINE_SECONDS": "3",
            "METERPOST_FLEET_STATE_FILE": str(self.folder / "fleet.json"),
            "METERPOST_REPLAY_HOURS": str(self.settings.replay_hours),
            "METERPOST_ALLOWED_DESTINATIONS": self.settings.allowed_destinations,
            "METERPOST_API_PORT": self.api_url.rpartition(":")[2],
            "METERPOST_API_PUBLIC_URL": self.api_url,
            EXPORT_STORE_VARIABLE: self.export_store_url,
        }
        if self.secret_keys_file is not None:
            environment["METERPOST_SECRET_KEYS_FILE"] = str(self.secret_keys_file)
        wanted = {
            "ingest": ["services.ingest"],
            "windowing": ["services.windowing"],
            "api": ["services.api"],
            **{f"delivery-{name}": ["services.delivery", name] for name in ("https", "sftp", "ftps")},
            "dropbox": ["services.dropbox"],
            "exports": ["services.exports"],
        }
        if self.settings.fleet:
            wanted["fleet"] = ["services.local.fleet"]
        return [Service(name, arguments, self.folder, environment) for name, arguments in wanted.items()]

    async def _until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        waiting = [service for service in self.services if service not in self.receivers]
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while waiting:
                waiting = [service for service in waiting if not await service.is_ready(session)]
                for service in self.services:
                    service.look()
                if waiting and asyncio.get_running_loop().time() > deadline:
                    slow = waiting[0]
                    raise LocalServerError(
                        f"{slow.name} is not ready after {READY_TIMEOUT_S:g} s. The end of {slow.process.log_file}:\n"
                        f"{slow.process.log_tail()}"
                    )
                await asyncio.sleep(0.1)
