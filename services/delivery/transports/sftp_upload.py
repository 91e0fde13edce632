"""Leaving one file on an SFTP server: complete or not at all, once, and never over somebody else's."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import suppress

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN

from services.core.file_transfer import SftpServer
from services.core.retry import Answer
from services.delivery.transports.base import OutgoingPart
from services.delivery.transports.file_answers import (
    ALREADY_THERE,
    SIZE_DIFFERS,
    STORED,
    file_exists,
    is_leftover,
    partial_name,
)
from services.platform.crash_points import crash_point

LIST_NAMES = 100_000
"""Of a folder that holds more, or has no end, leftovers are removed where they are among the first."""

_NOT_THERE = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)
REFUSED = (
    asyncssh.SFTPOpUnsupported,
    asyncssh.SFTPFailure,
    asyncssh.SFTPPermissionDenied,
    asyncssh.SFTPFileAlreadyExists,
)
"""What servers say of a rename that they do not offer, or not over a file that is there."""


class SftpUpload:
    """One attempt at one part, over one session. Raises asyncssh's errors; deadlines are the caller's."""

    def __init__(self, files: asyncssh.SFTPClient, server: SftpServer, part: OutgoingPart) -> None:
        self._files = files
        self._part = part
        self._final = server.path(part.file_name)
        self._partial = server.path(partial_name(part.file_name))

    async def run(self) -> Answer:
        """Leave the file there under its name, unless it is there already."""
        found = await self._found()
        if found is not None:
            return found
        if not await self._write():
            await self.remove_partial()
            return SIZE_DIFFERS
        crash_point("delivery.before_rename")
        # Once more: the transfer took its time, and on some servers the rename would replace what came meanwhile.
        found = await self._found()
        if found is None:
            found = await self._put_in_place()
        if found is not None:
            await self.remove_partial()
            return found
        crash_point("delivery.after_rename")
        return STORED

    async def remove_partial(self) -> None:
        """Remove what an attempt that failed left under its hidden name, if the server still lets us."""
        with suppress(asyncssh.Error, OSError):
            await self._files.remove(self._partial)

    async def _found(self) -> Answer | None:
        """Return the answer that a file of this name means: ours from before, or somebody else's."""
        try:
            attributes = await self._files.lstat(self._final)
        except _NOT_THERE:
            return None
        if attributes.type not in {FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN}:
            return file_exists(self._part.file_name)
        if attributes.size != len(self._part.body):
            return file_exists(self._part.file_name)
        async with self._files.open(self._final, "rb", encoding=None) as stream:
            content: bytes | str = await stream.read(len(self._part.body) + 1)
        is_same = isinstance(content, bytes) and hashlib.sha256(content).digest() == self._part.sha256
        return ALREADY_THERE if is_same else file_exists(self._part.file_name)

    async def _write(self) -> bool:
        """Write the hidden file and have it kept; tell whether the server has as many bytes as we sent."""
        async with self._files.open(self._partial, "xb") as stream:
            await stream.write(self._part.body)
            crash_point("delivery.body_written")
            with suppress(asyncssh.SFTPOpUnsupported):
                await stream.fsync()
            attributes = await stream.stat()
        return attributes.size == len(self._part.body)

    async def _put_in_place(self) -> Answer | None:
        """Give the file its name; return the answer where another one has it by now."""
        try:
            await rename(self._files, self._partial, self._final)
        except REFUSED:
            found = await self._found()
            if found is None:
                raise
            return found
        return None


async def rename(files: asyncssh.SFTPClient, partial: str, final: str) -> None:
    """Rename a file, and replace none wherever the server can do that. Raises one of REFUSED where it does not.

    By the protocol the plain rename never replaces a file. OpenSSH does it with a link, so that there is no moment at
    which a file that comes at the same time would be lost, or a reader would find half of one. Where it is refused
    though nothing is in the way, the server may still have the other one, which replaces.
    """
    try:
        await files.rename(partial, final)
    except REFUSED as refusal:
        if await files.exists(final):
            raise
        try:
            await files.posix_rename(partial, final)
        except asyncssh.SFTPOpUnsupported:
            raise refusal from None


async def remove_leftovers(files: asyncssh.SFTPClient, server: SftpServer, job_id: int) -> None:
    """Remove the hidden files of the job's earlier attempts, as far as the server lets us."""
    looked_at = 0
    entries = files.scandir(server.directory or ".")
    with suppress(asyncssh.SFTPError):
        try:
            async for entry in entries:
                looked_at += 1
                if looked_at > LIST_NAMES:
                    break
                name = entry.filename if isinstance(entry.filename, str) else entry.filename.decode("utf-8", "replace")
                if is_leftover(name, job_id):
                    with suppress(asyncssh.SFTPError):
                        await files.remove(server.path(name))
        finally:
            if isinstance(entries, AsyncGenerator):
                await entries.aclose()
