"""From chunks to the file. Blocks; call it in a thread."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from services.core.manual_export import ExportFormat, file_name
from services.exports.model import Chunk, Export, File
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


def assemble(store: ObjectStore, export: Export, chunks: Sequence[Chunk], stopping: Event) -> File:
    """Write the file; it appears when it is complete. The same chunks give the same bytes.

    Raises ChunkBrokenError, AssemblyStopped after `stopping` is set, Unavailable and UserError as the store does.
    """
    name = f"{export.folder}/{file_name(export.wanted, export.key.export_id)}"
    with store.writer(name) as writer:
        sink = _Hashing(writer)
        pieces = _verified(store, export, chunks, stopping)
        if export.format is ExportFormat.PARQUET:
            join_parquet(pieces, sink)
        else:
            sink.write(_HEAD[export.format])
            for piece in pieces:
                sink.write(piece)
        crash_point("exports.before_file")
    return File(name, sink.byte_count, sink.digest.digest())


def _verified(store: ObjectStore, export: Export, chunks: Sequence[Chunk], stopping: Event) -> Iterator[bytes]:
    """Yield what each chunk holds. The next is read while the one before is written."""
    with ThreadPoolExecutor(1) as reading_ahead:
        following: Future[bytes] | None = None
        for place, chunk in enumerate(chunks):
            if stopping.is_set():
                raise AssemblyStopped
            content = _read(store, export, chunk) if following is None else following.result()
            is_last = place + 1 == len(chunks)
            following = None if is_last else reading_ahead.submit(_read, store, export, chunks[place + 1])
            yield content


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
