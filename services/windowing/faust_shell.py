"""The only module that imports faust: two agents on plain topics, inside our own event loop.

What faust does here is to share the partitions among the workers and to hand over their messages one at a time, at
least once. No faust table, window or state, no web server, no topic of its own, no producer: what must not be lost is
in PostgreSQL, and every message may be lost, doubled or late.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import faust
import msgspec
import structlog
from faust.app.base import BootStrategy
from faust.auth import SASLCredentials, SSLCredentials

from services.core.messages import WindowsDue
from services.platform.errors import Unavailable
from services.platform.kafka import MAX_POLL_INTERVAL_MS, SESSION_TIMEOUT_MS
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_refusal import ensure_accepted
from services.platform.topics import INGEST_PROGRESS, WINDOWS_DUE
from services.windowing.settings import WindowingSettings

START_SECONDS = 30.0
STOP_SECONDS = 5.0
log = structlog.get_logger()


class _Boot(BootStrategy):
    enable_web = False
    enable_kafka_producer = False


class _App(faust.App):
    BootStrategy = _Boot

    def _create_directories(self) -> None:
        """Faust would make folders for tables, which we do not have, where it happens to run."""


def _credentials(kafka: KafkaAccess) -> Any:
    """Return faust's own form of how we log in; None: in plaintext."""
    if kafka.login is not None:
        return SASLCredentials(
            username=kafka.login.username,
            password=kafka.login.password,
            mechanism=kafka.login.mechanism,
            ssl_context=kafka.tls,
        )
    return None if kafka.tls is None else SSLCredentials(kafka.tls)


class FaustShell:
    """One membership in the group. `failed` is done with what an agent raised, which faust itself would swallow."""

    def __init__(
        self,
        settings: WindowingSettings,
        *,
        partitions: dict[str, int],
        on_progress: Callable[[], None],
        on_due: Callable[[WindowsDue], Awaitable[None]],
        last_heard: Callable[[float], None],
    ) -> None:
        self._on_progress = on_progress
        self._on_due = on_due
        self._last_heard = last_heard
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kafka = settings.kafka_access()
        self._app = _App(
            settings.group("windowing"),
            loop=asyncio.get_running_loop(),
            broker=";".join(f"kafka://{server.strip()}" for server in self._kafka.bootstrap_servers.split(",")),
            broker_credentials=_credentials(self._kafka),
            broker_client_id=settings.instance,
            broker_session_timeout=SESSION_TIMEOUT_MS / 1000,
            broker_heartbeat_interval=SESSION_TIMEOUT_MS / 4000,
            broker_max_poll_interval=MAX_POLL_INTERVAL_MS / 1000,
            consumer_auto_offset_reset="earliest",
            consumer_metadata_max_age_ms=5_000,
            processing_guarantee="at_least_once",
            # A rebalance never waits for the database: a message that is served twice changes nothing.
            stream_wait_empty=False,
            stream_processing_timeout=MAX_POLL_INTERVAL_MS / 1000,
            store="memory://",
            topic_disable_leader=True,
            topic_allow_declare=False,
            reply_create_topic=False,
            web_enabled=False,
            autodiscover=False,
        )
        for name, serve in ((INGEST_PROGRESS, self._serve_progress), (WINDOWS_DUE, self._serve_due)):
            topic = self._app.topic(
                settings.topic(name),
                key_type=bytes,
                value_type=bytes,
                key_serializer="raw",
                value_serializer="raw",
                partitions=partitions[name],
            )
            self._app.agent(topic, name=name, concurrency=1)(serve)

    async def run(self, stopping: asyncio.Event) -> None:
        """Take part until told to stop.

        Raises Unavailable where Kafka is away or faust gave up; a new shell may then be tried. Raises KafkaRefusedError
        where Kafka refuses us, and what an agent raised.
        """
        try:
            await self._start()
            await self._until_over(stopping)
        finally:
            await self._stop()

    async def _start(self) -> None:
        if self._kafka.is_secured:
            await ensure_accepted(self._kafka)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._app.start()
        except Exception as error:
            raise Unavailable(f"faust did not start: {error!r}") from error

    async def _until_over(self, stopping: asyncio.Event) -> None:
        over: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(stopping.wait()),
            asyncio.ensure_future(self._app.wait_until_stopped()),  # or crashed
        ]
        try:
            await asyncio.wait({*over, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in over:
                task.cancel()
        if self._failed.done():
            self._failed.result()
        if not stopping.is_set():
            raise Unavailable(f"faust gave up: {self._app.crash_reason!r}")

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._app.stop()
        except Exception as error:  # noqa: BLE001 - it is over in any case; the group's session times out
            log.warning("faust_stopped_badly", error=repr(error))

    async def _serve_progress(self, stream: Any) -> None:
        async for _message in stream:
            self._last_heard(time.monotonic())
            self._on_progress()

    async def _serve_due(self, stream: Any) -> None:
        async for message in stream:
            self._last_heard(time.monotonic())
            await self._serve_one(message)

    async def _serve_one(self, message: bytes | None) -> None:
        """Serve one message; never raises, because faust would count the message as served and go on."""
        try:
            due = msgspec.json.decode(message or b"", type=WindowsDue)
        except msgspec.MsgspecError as error:
            log.warning("message_ignored", topic=WINDOWS_DUE, error=str(error))
            return
        try:
            await self._on_due(due)
        except Unavailable:
            log.info("stopped_while_waiting")
        except Exception as error:  # noqa: BLE001 - handed to whoever runs the shell
            if not self._failed.done():
                self._failed.set_exception(error)
