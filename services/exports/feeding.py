"""The file of an export while its last chunks are still being made."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from services.exports.assembling import Chunks, assemble
from services.exports.model import Chunk, Claim, Export, File
from services.platform.objects import ObjectStore


class Feeding:
    """Writes the file in a thread of its own, as far as chunks have come. Whoever begins it closes it."""

    def __init__(self, objects: ObjectStore, claim: Claim, export: Export) -> None:
        self._chunks = Chunks()
        self._stopping = threading.Event()
        # Not one of the threads that all share: it waits, and others of them put the chunks that it waits for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="export-file")
        loop = asyncio.get_running_loop()
        self._file = loop.run_in_executor(self._thread, assemble, objects, claim, export, self._chunks, self._stopping)

    def add(self, chunk: Chunk) -> None:
        """Let a chunk follow that is in the store; in their order."""
        self._chunks.add(chunk)

    async def file(self) -> File:
        """Return the file, once it is complete; no chunk follows, and all are recorded. Raises what `assemble` does."""
        self._chunks.end()
        return await asyncio.shield(self._file)

    @property
    def is_over(self) -> bool:
        """Whether nothing is written any more: the file is complete, or `file` raises why it never will be."""
        return self._file.done()

    def stop(self) -> None:
        """Let nothing appear, unless it has."""
        self._stopping.set()
        self._chunks.end()

    async def close(self) -> None:
        """Stop, and wait until nothing is written any more."""
        self.stop()
        await asyncio.gather(self._file, return_exceptions=True)
        self._thread.shutdown(wait=False)
