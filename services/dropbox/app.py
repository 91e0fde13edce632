"""The hosted folder's wiring: what the SFTP server needs, built once, closed in order."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import asyncssh
import structlog
from asyncssh.channel import SSHChannel

from services.dropbox.connections import Connections, Limits, Peer
from services.dropbox.customer_files import CustomerFiles
from services.dropbox.depositor_files import DepositorFiles
from services.dropbox.door import Door, read_depositor_keys
from services.dropbox.folders import Folders, Quota
from services.dropbox.host_keys import load_host_keys, shown
from services.dropbox.keeper import Keeper, Times
from services.dropbox.login import Login
from services.dropbox.recorder import Recorder
from services.dropbox.settings import DropboxSettings
from services.dropbox.throttle import Failures
from services.platform.clock import Clock, SystemClock
from services.platform.errors import Unavailable, UserError
from services.platform.health import Health
from services.platform.postgres import Patience, Pool, connect_pool
from services.platform.ssh_algorithms import CIPHERS, KEY_EXCHANGES, MACS, SIGNATURES

DISK_THREADS = 16
POOL_SIZE = 4
DRAIN_SECONDS = 2.0
log = structlog.get_logger()


async def serve(settings: DropboxSettings, health: Health, stopping: asyncio.Event) -> None:
    """Serve until told to stop. Raises UserError for what only a person can put right."""
    patience = Patience(health, stopping)
    url = settings.database_url.get_secret_value()
    try:
        pool = await patience.postgres(lambda: connect_pool(url, max_size=POOL_SIZE))
    except Unavailable:
        return
    try:
        async with serving(settings, pool, patience, SystemClock()):
            health.started()
            await stopping.wait()
    except Unavailable:
        if not stopping.is_set():
            raise
    finally:
        pool.terminate()


@asynccontextmanager
async def serving(settings: DropboxSettings, pool: Pool, patience: Patience, clock: Clock) -> AsyncIterator[int]:
    """Serve the folder; give the port. Raises UserError, and Unavailable when told to stop before it has begun."""
    root = settings.dropbox_folder
    with _sole_server(root), ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk") as threads:
        host_keys = await asyncio.to_thread(_host_keys, root)
        folders = Folders(root / "files", Quota(settings.dropbox_quota_bytes, settings.dropbox_quota_files))
        recorder = Recorder(pool, patience, clock)
        door = await asyncio.to_thread(_door, settings, pool, recorder)
        keeper = Keeper(pool, patience, clock, folders, recorder, door.connections, door, _times(settings))
        await keeper.begin()
        await door.warm_up()
        background = [asyncio.create_task(recorder.run()), asyncio.create_task(keeper.run())]
        for task in background:
            task.add_done_callback(partial(_end_with, patience.stopping))
        try:
            async with _listening(settings, host_keys, door, folders, recorder, threads) as port:
                yield port
            await _drained(recorder)
        finally:
            for task in background:
                task.cancel()
            outcomes = await asyncio.gather(*background, return_exceptions=True)
            door.close()
            folders.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


def _end_with(stopping: asyncio.Event, task: "asyncio.Task[None]") -> None:
    """End the service with a part of it that failed; how, is told at its end."""
    if not task.cancelled() and task.exception() is not None:
        stopping.set()


@asynccontextmanager
async def _listening(
    settings: DropboxSettings,
    host_keys: list[asyncssh.SSHKey],
    door: Door,
    folders: Folders,
    recorder: Recorder,
    threads: ThreadPoolExecutor,
) -> AsyncIterator[int]:
    def files(channel: SSHChannel[bytes], peer: Peer, may_answer: asyncio.Event) -> asyncssh.SFTPServer:
        if peer.role == "depositor":
            return DepositorFiles(
                channel, peer, may_answer, threads=threads, folders=folders, recorder=recorder, door=door
            )
        return CustomerFiles(channel, peer, may_answer, threads=threads, folders=folders, recorder=recorder)

    def login() -> Login:
        return Login(door, files, failure_delay_seconds=settings.dropbox_failure_delay_seconds)

    host, port = settings.dropbox_listen_host, settings.dropbox_listen_port
    try:
        acceptor = await asyncssh.create_server(
            login,
            host,
            port,
            config=[],
            server_host_keys=host_keys,
            # Announces those keys, too, that are not in use yet.
            send_server_host_keys=True,
            server_version="Meterpost",
            login_timeout=settings.dropbox_login_seconds,
            keepalive_interval=30,
            keepalive_count_max=3,
            kex_algs=KEY_EXCHANGES,
            encryption_algs=CIPHERS,
            mac_algs=MACS,
            signature_algs=SIGNATURES,
            compression_algs=("none",),
            x509_trusted_certs=None,
            gss_host=None,
            host_based_auth=False,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_scp=False,
            line_editor=False,
        )
    except OSError as error:
        raise UserError(
            f"nothing can listen on {host}:{port} ({error.strerror}): choose another METERPOST_DROPBOX_LISTEN_PORT"
        ) from None
    log.info("dropbox_listening", host=host, port=acceptor.get_port(), host_keys=[shown(key) for key in host_keys])
    try:
        yield acceptor.get_port()
    finally:
        acceptor.close()
        for peer in door.connections.peers():
            peer.end(asyncssh.DISC_BY_APPLICATION, "the service is stopped: connect again in a while")
        await asyncio.wait([asyncio.create_task(_all_gone(door.connections))], timeout=1)
        for peer in door.connections.peers():
            peer.connection.abort()


async def _all_gone(connections: Connections) -> None:
    for peer in connections.peers():
        await peer.connection.wait_closed()


async def _drained(recorder: Recorder) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await recorder.drain()
    except TimeoutError:
        log.warning("dropbox_records_not_written", reason="the database does not answer; the log has them")


def _door(settings: DropboxSettings, pool: Pool, recorder: Recorder) -> Door:
    keys = read_depositor_keys(settings.dropbox_depositor_keys_file)
    if not keys:
        log.warning("dropbox_without_depositor", action="set METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE")
    window_seconds = settings.dropbox_failure_minutes * 60
    limits = Limits(
        settings.dropbox_connections, settings.dropbox_connections_per_account, settings.dropbox_logins_per_address
    )
    return Door(
        pool,
        recorder,
        Connections(limits),
        depositor_keys=keys,
        by_address=Failures(settings.dropbox_failures, window_seconds),
        by_account=Failures(settings.dropbox_failures, window_seconds),
    )


def _times(settings: DropboxSettings) -> Times:
    return Times(
        keep=timedelta(days=settings.dropbox_keep_days),
        record=timedelta(days=settings.dropbox_record_days),
        idle_seconds=settings.dropbox_idle_seconds,
        look_seconds=settings.dropbox_look_seconds,
        prune_seconds=settings.dropbox_prune_seconds,
    )


def _host_keys(root: Path) -> list[asyncssh.SSHKey]:
    try:
        return load_host_keys(root)
    except OSError as error:
        raise UserError(f"the host keys in {root} cannot be read or made: {error.strerror}") from None


@contextmanager
def _sole_server(root: Path) -> Iterator[None]:
    """Hold the folder for this process alone, as long as it lives. Raises UserError where another has it."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"METERPOST_DROPBOX_FOLDER: {root} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"METERPOST_DROPBOX_FOLDER: another process serves {root} already") from None
        yield
    finally:
        os.close(lock)
