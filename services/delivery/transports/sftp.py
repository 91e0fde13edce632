"""CSV over SFTP: one file a part, on a server whose key a person has approved."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncssh

from services.core.file_transfer import HOSTED, SftpServer, file_format, fingerprint, sftp_server
from services.core.parts import PartFormat
from services.core.retry import Answer
from services.delivery.transports.base import Destination, Means, OutgoingPart, Step, StepName
from services.delivery.transports.checking import Reached, reach
from services.delivery.transports.file_answers import CONNECT_TIMEOUT, SIZE_DIFFERS, TIMEOUT
from services.delivery.transports.hosted import NotReady, server_of
from services.delivery.transports.seen_jobs import SeenJobs
from services.delivery.transports.sftp_answers import LOST, answer_of_error, host_key_sentence
from services.delivery.transports.sftp_sessions import HostKeyRefused, Session, SftpSessions, log_in
from services.delivery.transports.sftp_upload import SftpUpload, remove_leftovers, rename
from services.platform.errors import MeterpostError, UserError
from services.platform.hosted import HostedNotReady

_FAILURES = (asyncssh.Error, MeterpostError, HostKeyRefused, OSError, ValueError)
TEST_CONTENT = b"Meterpost tests this connection; the file may be removed.\n"


class SftpTransport:
    """Sends parts over pooled sessions."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._sessions = SftpSessions(means)
        # Where the hosted folder is, the operator says: only to there, but to there wherever it is.
        self._hosted_means = means if means.hosted is None else means._replace(outbound=means.hosted.outbound())
        self._hosted_sessions = SftpSessions(self._hosted_means)
        self._seen = SeenJobs()

    def part_format(self, settings: Mapping[str, Any]) -> PartFormat:
        """At most 10,000 rows, with the line ends of the job."""
        try:
            return file_format(settings)
        except ValueError as error:
            raise UserError(f"transport settings: {error}") from None

    def destination(self, settings: Mapping[str, Any]) -> Destination:
        """Return the server of a job; UserError says which setting is wrong."""
        if HOSTED in settings:
            try:
                hosted = server_of(self._means.hosted, settings)
            except HostedNotReady as error:
                return NotReady(error)
            return SftpDestination(hosted, self._hosted_means, self._hosted_sessions, self._seen)
        try:
            server = sftp_server(settings)
        except ValueError as error:
            raise UserError(f"transport settings: {error}") from None
        return SftpDestination(server, self._means, self._sessions, self._seen)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._sessions.aclose()
        await self._hosted_sessions.aclose()
        if self._hosted_means is not self._means:
            self._hosted_means.outbound.close()


@dataclass(frozen=True, slots=True)
class SftpDestination:
    """A folder of an account that takes parts."""

    server: SftpServer
    means: Means
    sessions: SftpSessions
    seen: SeenJobs

    @property
    def address(self) -> str:
        """Host and port."""
        return self.server.address

    async def send(self, part: OutgoingPart) -> Answer:
        """Leave the part there. A session that was kept and has died meanwhile is replaced, once."""
        try:
            async with asyncio.timeout(self.means.deadlines.total.total_seconds()) as total:
                try:
                    return await self._send(part, fresh=False)
                except _StaleSession:
                    return await self._send(part, fresh=True)
        except TimeoutError:
            return TIMEOUT if total.expired() else CONNECT_TIMEOUT
        except _FAILURES as error:
            return answer_of_error(error, approved=bool(self.server.host_keys))

    async def _send(self, part: OutgoingPart, *, fresh: bool) -> Answer:
        was_used = False
        try:
            async with self.sessions.lend(self.server, fresh=fresh) as session:
                was_used = session.was_used
                return await self._upload(session, part)
        except LOST:
            if was_used:
                raise _StaleSession from None
            raise

    async def _upload(self, session: Session, part: OutgoingPart) -> Answer:
        if self.seen.is_new(self.server, part.job_id):
            await remove_leftovers(session.files, self.server, part.job_id)
        upload = SftpUpload(session.files, self.server, part)
        try:
            return await upload.run()
        except asyncssh.SFTPError as error:
            if isinstance(error, LOST):
                raise
            # The server refuses something; the session itself is sound and is kept.
            await upload.remove_partial()
            return answer_of_error(error, approved=True)

    async def check(self) -> AsyncIterator[Step]:
        """Resolve, reach, trust, log in, write, rename, remove: with a small file of a name of its own."""
        reached = Reached()
        async for step in reach(self.means, self.server.host, self.server.port, reached):
            yield step
        if reached.connection is None:
            return
        trusted: list[str] = []
        session: Session | None = None
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self.means.deadlines.connect.total_seconds()):
                session = await log_in(self.server, reached.connection, trusted.append)
        except (TimeoutError, *_FAILURES) as error:
            failure = error
        if trusted:
            kind = trusted[0].split()[0]
            yield Step("trust", True, f"the server shows the approved key, {kind} {fingerprint(trusted[0])}")
        if session is None:
            yield self._not_in(failure, is_trusted=bool(trusted))
            return
        yield Step("log in", True, f"the account {self.server.user} is let in")
        try:
            async for step in _try_folder(session, self.server, self.means):
                yield step
        finally:
            session.close()

    def _not_in(self, failure: Exception | None, *, is_trusted: bool) -> Step:
        if isinstance(failure, HostKeyRefused):
            sentence = host_key_sentence(failure.shown, approved=bool(self.server.host_keys))
            return Step("trust", False, sentence, failure.shown)
        name: StepName = "log in" if is_trusted else "trust"
        if failure is None or isinstance(failure, TimeoutError):
            return Step(name, False, f"{CONNECT_TIMEOUT.detail}: does this port speak SSH?")
        return Step(name, False, answer_of_error(failure, approved=True).detail)


class _StaleSession(Exception):  # noqa: N818 - not an error: a fresh session is to be tried
    """A session that had been kept was dead."""


async def _try_folder(session: Session, server: SftpServer, means: Means) -> AsyncIterator[Step]:
    name = f"meterpost-connection-test-{secrets.token_hex(4)}"
    hidden, final = server.path(f".{name}.partial"), server.path(name)
    files = session.files

    async def write() -> str:
        async with files.open(hidden, "xb") as stream:
            await stream.write(TEST_CONTENT)
        if await files.getsize(hidden) != len(TEST_CONTENT):
            raise asyncssh.SFTPFailure(SIZE_DIFFERS.detail)
        return f"a file can be written to {server.directory or 'the folder of the account'}"

    async def rename_it() -> str:
        await rename(files, hidden, final)
        return "it can be renamed"

    async def remove() -> str:
        await files.remove(final)
        return "it can be removed"

    actions: tuple[tuple[StepName, Callable[[], Awaitable[str]]], ...]
    actions = (("write", write), ("rename", rename_it), ("remove", remove))
    for step_name, action in actions:
        try:
            async with asyncio.timeout(means.deadlines.connect.total_seconds()):
                sentence = await action()
        except TimeoutError:
            yield Step(step_name, False, TIMEOUT.detail)
            return
        except _FAILURES as error:
            yield Step(step_name, False, answer_of_error(error, approved=True).detail)
            return
        yield Step(step_name, True, sentence)
