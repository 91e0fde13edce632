"""From chunks to the file. Blocks; call it in a thread."""

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from threading import Event

from services.core.manual_export import ExportFormat
from services.exports.model import Chunk, Claim, Export, File, Key
from services.exports.parquet import join_parquet, to_parquet
from services.exports.rows_sql import CSV_HEAD
from services.platform.crash_points import crash_point
from services.platform.errors import MeterpostError
from services.platform.objects import ObjectMissingError, ObjectStore, Sink

_HEAD = {ExportFormat.CSV: CSV_HEAD, ExportFormat.JSON_LINES: b""}


class ChunkBrokenError(MeterpostError):
    """The store lost a chunk or gives other bytes than were put: the export begins again."""


class AssemblyStopped(Exception):  # noqa: N818 - not an error: whoever asked has stopped
    """Nobody waits for the file any more."""


def put_chunk(store: ObjectStore, export: Export, chunk: int, epoch: int, lines: bytes, row_count: int) -> Chunk:
    """Put the rows of a stretch into the store and return what is to be recorded of them."""
    content = to_parquet(lines) if export.format is ExportFormat.PARQUET else lines
    store.put(export.chunk_name(chunk, epoch), content)
    return Chunk(chunk, epoch, row_count, len(content), hashlib.sha256(content).digest())


class Chunks:
    """Chunks on their way to the file, in their order. Any thread may use it; to take the next may block."""

    def __init__(self) -> None:
        self._queue = SimpleQueue[Chunk | None]()

    def add(self, chunk: Chunk) -> None:
        """Let one more follow."""
        self._queue.put(chunk)

    def end(self) -> None:
        """Say that none follows; whoever waits for one waits no longer."""
        self._queue.put(None)

    def take(self) -> Chunk | None:
        """Return the next, as soon as there is one; None: it was the last."""
        return self._queue.get()


def assemble(store: ObjectStore, claim: Claim, export: Export, chunks: Chunks, stopping: Event) -> File:
    """Write the file; it appears when it is complete. The same chunks give the same bytes.

    It lies under the claim's epoch, so whoever was taken over and wakes up touches nothing of the new owner's, and
    what such a one left takes up no room.

    Raises ChunkBrokenError, AssemblyStopped after `stopping` is set, Unavailable and UserError as the store does.
    """
    for epoch in file_epochs(store, claim.key):
        if epoch < claim.epoch:
            store.remove_all(f"{claim.key.files}/{epoch}")
    name = export.object_name(claim.epoch)
    with store.writer(name) as writer, closing(_verified(store, export, chunks, stopping)) as pieces:
        sink = _Hashing(writer)
        if export.format is ExportFormat.PARQUET:
            join_parquet(pieces, sink)
        else:
            sink.write(_HEAD[export.format])
            for piece in pieces:
                sink.write(piece)
        crash_point("exports.before_file")
    return File(name, sink.byte_count, sink.digest.digest())


def file_epochs(store: ObjectStore, key: Key) -> list[int]:
    """Return the epochs of those who began or completed the file."""
    return [int(name) for name in store.folders(key.files) if name.isdecimal()]  # others are none of ours


def _verified(store: ObjectStore, export: Export, chunks: Chunks, stopping: Event) -> Generator[bytes]:
    """Yield what each chunk holds. The next is read while the one before is written."""

    def read_next() -> bytes | None:
        chunk = chunks.take()
        return None if chunk is None or stopping.is_set() else _read(store, export, chunk)

    with ThreadPoolExecutor(1) as reading_ahead:
        try:
            following = reading_ahead.submit(read_next)
            while (content := following.result()) is not None and not stopping.is_set():
                following = reading_ahead.submit(read_next)
                yield content
        finally:
            # Where the file came to grief, nobody is left to say that no chunk follows.
            chunks.end()
    if stopping.is_set():
        raise AssemblyStopped


def _read(store: ObjectStore, export: Export, chunk: Chunk) -> bytes:
    try:
        content = store.get(export.chunk_name(chunk.chunk, chunk.epoch))
    except ObjectMissingError as error:
        raise ChunkBrokenError(f"chunk {chunk.chunk} is gone") from error
    if hashlib.sha256(content).digest() != chunk.sha256:
        raise ChunkBrokenError(f"chunk {chunk.chunk} has other bytes than were put")
    return content


class _Hashing:
    """Passes bytes on and hashes them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.byte_count = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._sink.write(data)
        self.digest.update(data)
        self.byte_count += len(data)
