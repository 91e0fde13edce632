"""CSV over FTPS: one file a part, inside TLS on both connections, the server's certificate verified.

The protocol is spoken by ftplib in a thread of its own for each attempt; what ends an attempt at its deadline is that
its connections are cut from outside.
"""

import asyncio
import ftplib
import functools
import hashlib
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from services.core.file_transfer import FtpsServer, file_format, ftps_server
from services.core.parts import PartFormat
from services.core.retry import Answer
from services.delivery.transports.base import Means, OutgoingPart, Step, StepName
from services.delivery.transports.checking import Reached, reach, trust_problem
from services.delivery.transports.file_answers import (
    ALREADY_THERE,
    CONNECT_TIMEOUT,
    SIZE_DIFFERS,
    STORED,
    TIMEOUT,
    file_exists,
    is_leftover,
    partial_name,
)
from services.delivery.transports.ftps_answers import RENAME_REFUSED, STALE, answer_of_error
from services.delivery.transports.ftps_session import UNKNOWN_SIZE, FtpsSession
from services.delivery.transports.idle_sessions import IdleSessions
from services.delivery.transports.seen_jobs import SeenJobs
from services.platform.crash_points import crash_point
from services.platform.errors import MeterpostError, UserError

# As many attempts as a process may make at once; threads are made when they are needed.
MAX_THREADS = 1_000
# How long a thread may take to notice that its connections were cut.
CUT_SECONDS = 2.0
TEST_CONTENT = b"Meterpost tests this connection; the file may be removed.\n"
_FAILURES = (ftplib.Error, EOFError, MeterpostError, OSError, ValueError)

ResultT = TypeVar("ResultT")


class FtpsTransport:
    """Sends parts over sessions that are kept for the next ones."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="ftps")
        self._seen = SeenJobs()
        self._idle: IdleSessions[FtpsServer, FtpsSession] = IdleSessions()

    def part_format(self, settings: Mapping[str, Any]) -> PartFormat:
        """At most 10,000 rows, with the line ends of the job."""
        try:
            return file_format(settings)
        except ValueError as error:
            raise UserError(f"transport settings: {error}") from None

    def destination(self, settings: Mapping[str, Any]) -> "FtpsDestination":
        """Return the server of a job; UserError says which setting is wrong."""
        try:
            server = ftps_server(settings)
            context = _tls(server.ca_pem)
        except ValueError as error:
            raise UserError(f"transport settings: {error}") from None
        return FtpsDestination(server, context, self._means, self._threads, self._seen, self._idle)

    async def aclose(self) -> None:
        """Take no more attempts; those that ran were ended with their callers."""
        self._idle.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class FtpsDestination:
    """A folder of an account that takes parts."""

    server: FtpsServer
    context: ssl.SSLContext
    means: Means
    threads: ThreadPoolExecutor
    seen: SeenJobs
    idle: IdleSessions[FtpsServer, FtpsSession]

    @property
    def address(self) -> str:
        """Host and port."""
        return self.server.address

    async def send(self, part: OutgoingPart) -> Answer:
        """Leave the part there. A session that was kept and has died meanwhile is replaced, once."""
        try:
            async with asyncio.timeout(self.means.deadlines.total.total_seconds()) as total:
                kept = self.idle.take(self.server)
                if kept is not None:
                    with suppress(*STALE):
                        return await self._send(kept, part)
                return await self._send(await self._begin(), part)
        except TimeoutError:
            return TIMEOUT if total.expired() else CONNECT_TIMEOUT
        except _FAILURES as error:
            return answer_of_error(error)

    async def _send(self, session: FtpsSession, part: OutgoingPart) -> Answer:
        try:
            is_new = self.seen.is_new(self.server, part.job_id)
            answer = await self._in_thread(session, lambda: _upload(session, self.server, part, clean=is_new))
        except BaseException:
            session.close()
            raise
        self.idle.keep(self.server, session)
        return answer

    async def _begin(self) -> FtpsSession:
        """Return a session that is logged in, within the connect deadline."""
        async with asyncio.timeout(self.means.deadlines.connect.total_seconds()):
            session = await self._connect()
            try:
                await self._in_thread(session, session.begin)
            except BaseException:
                session.close()
                raise
            return session

    async def _connect(self) -> FtpsSession:
        connected = await self.means.outbound.connect(self.server.host, self.server.port)
        return self._session(connected)

    def _session(self, connected: Any) -> FtpsSession:
        # Of no consequence for what answers: the deadlines cut. It ends a thread whose cutting failed.
        connected.settimeout(self.means.deadlines.total.total_seconds() + CUT_SECONDS)
        return FtpsSession(self.server, self.context, connected)

    async def _in_thread(self, session: FtpsSession, work: Callable[[], ResultT]) -> ResultT:
        """Return what `work` returns; when we are cancelled, its connections are cut and it ends."""
        running = asyncio.get_running_loop().run_in_executor(self.threads, session.run, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            session.cut()
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait({running}, timeout=CUT_SECONDS)
            raise

    async def check(self) -> AsyncIterator[Step]:
        """Resolve, reach, trust, log in, write, rename, remove: with a small file of a name of its own."""
        reached = Reached()
        async for step in reach(self.means, self.server.host, self.server.port, reached):
            yield step
        if reached.connection is None:
            return
        session = self._session(reached.connection)
        name = f"meterpost-connection-test-{secrets.token_hex(4)}"
        hidden, final = self.server.path(f".{name}.partial"), self.server.path(name)
        folder = self.server.directory or "the folder of the account"
        steps: tuple[tuple[StepName, Callable[[], object], str], ...] = (
            ("trust", session.trust, f"the certificate is trusted and names {self.server.host}"),
            ("log in", session.log_in, f"the account {self.server.user} is let in"),
            ("write", lambda: _try_writing(session, hidden), f"a file can be written to {folder}"),
            ("rename", lambda: session.rename(hidden, final), "it can be renamed"),
            ("remove", lambda: session.remove(final), "it can be removed"),
        )
        try:
            for step_name, work, sentence in steps:
                problem = await self._try(session, step_name, work)
                yield Step(step_name, problem is None, problem or sentence)
                if problem is not None:
                    return
        finally:
            session.close()

    async def _try(self, session: FtpsSession, name: StepName, work: Callable[[], object]) -> str | None:
        try:
            async with asyncio.timeout(self.means.deadlines.connect.total_seconds()):
                await self._in_thread(session, work)
        except TimeoutError:
            is_early = name == "trust"
            return f"{CONNECT_TIMEOUT.detail}: does this port speak FTP with TLS?" if is_early else TIMEOUT.detail
        except ssl.SSLError as error:
            return trust_problem(error)
        except _FAILURES as error:
            return answer_of_error(error).detail
        return None


def _upload(session: FtpsSession, server: FtpsServer, part: OutgoingPart, *, clean: bool) -> Answer:
    """Leave the file there under its name, unless it is there already. Blocks."""
    if clean:
        _remove_leftovers(session, server, part.job_id)
    final, hidden = server.path(part.file_name), server.path(partial_name(part.file_name))
    found = _found(session, final, part)
    if found is not None:
        return found
    try:
        if not _write(session, hidden, part.body):
            return _given_up(session, hidden, SIZE_DIFFERS)
        crash_point("delivery.before_rename")
        # Once more: the transfer took its time, and the rename would replace what came meanwhile.
        found = _found(session, final, part)
        if found is not None:
            return _given_up(session, hidden, found)
    except ftplib.error_perm as error:
        return _given_up(session, hidden, answer_of_error(error))
    try:
        session.rename(hidden, final)
    except ftplib.error_perm as error:
        return _given_up(session, hidden, RENAME_REFUSED._replace(detail=f"{RENAME_REFUSED.detail}; it said: {error}"))
    crash_point("delivery.after_rename")
    return STORED


def _write(session: FtpsSession, path: str, body: bytes) -> bool:
    """Write a file; tell whether the server has as many bytes as we sent."""
    session.write(path, body)
    crash_point("delivery.body_written")
    return session.size(path) in {len(body), UNKNOWN_SIZE}


def _try_writing(session: FtpsSession, path: str) -> None:
    if not _write(session, path, TEST_CONTENT):
        raise OSError(SIZE_DIFFERS.detail)


def _found(session: FtpsSession, path: str, part: OutgoingPart) -> Answer | None:
    """Return the answer that a file of this name means: ours from before, or somebody else's."""
    size = session.size(path)
    if size is None:
        return None
    if size not in {len(part.body), UNKNOWN_SIZE}:
        return file_exists(part.file_name)
    content = session.read(path, len(part.body))
    if content is None:
        return None if size == UNKNOWN_SIZE else file_exists(part.file_name)
    return ALREADY_THERE if hashlib.sha256(content).digest() == part.sha256 else file_exists(part.file_name)


def _given_up(session: FtpsSession, hidden: str, answer: Answer) -> Answer:
    with suppress(ftplib.Error, EOFError, OSError):
        session.remove(hidden)
    return answer


def _remove_leftovers(session: FtpsSession, server: FtpsServer, job_id: int) -> None:
    """Remove the hidden files of the job's earlier attempts, as far as the server lets us."""
    with suppress(ftplib.Error):
        for name in session.names(server.directory, lambda name: is_leftover(name, job_id)):
            with suppress(ftplib.Error):
                session.remove(server.path(name))


@functools.lru_cache(maxsize=512)
def _tls(ca_pem: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError):
        raise ValueError('"ca_pem" must hold certificates in PEM form') from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
