"""Removes what is no longer needed: chunks of exports that are over, files that are kept no longer."""

import asyncio

import structlog

from services.exports.assembling import file_epochs
from services.exports.model import Key
from services.exports.store import ExportStore
from services.platform.clock import Clock
from services.platform.errors import Unavailable, UserError
from services.platform.metrics import EXPORT_FILES_REMOVED
from services.platform.objects import ObjectStore
from services.platform.postgres import Patience, wait_or_stop

log = structlog.get_logger()


class Sweeper:
    """Any number of processes may sweep at once: to remove twice is to remove."""

    def __init__(self, store: ExportStore, objects: ObjectStore, clock: Clock) -> None:
        self._store = store
        self._objects = objects
        self._clock = clock

    async def run(self, patience: Patience, every_seconds: float) -> None:
        """Look every so many seconds until told to stop; what did not work is tried again."""
        while not patience.stopping.is_set():
            try:
                await self.sweep()
            except (Unavailable, UserError) as error:
                log.warning("exports_not_swept", error=str(error))
            await wait_or_stop(patience.stopping, every_seconds)

    async def sweep(self) -> None:
        """Remove what is due. The store first, the tables then, so that nothing is ever forgotten there."""
        for key in await self._store.expired(self._clock.now()):
            await asyncio.to_thread(self._objects.remove_all, key.folder)
            await self._store.removed(key)
            EXPORT_FILES_REMOVED.inc()
            log.info("export_removed", export=key.export_id)
        for key, object_name in await self._store.with_leftovers():
            await asyncio.to_thread(self._keep_alone, key, object_name)
            await self._store.forget_chunks(key)

    def _keep_alone(self, key: Key, object_name: str | None) -> None:
        """Remove all of an export but the finished file: chunks, and what was begun by those who did not finish it."""
        self._objects.remove_all(key.chunks)
        for epoch in file_epochs(self._objects, key):
            folder = f"{key.files}/{epoch}"
            if object_name is None or not object_name.startswith(f"{folder}/"):
                self._objects.remove_all(folder)
