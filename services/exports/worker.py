"""One slice of work on one export: chunk after chunk, and the file."""

import asyncio
import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog

from services.exports.assembling import AssemblyStopped, ChunkBrokenError
from services.exports.chunks import ChunkMaker, Made, NoLongerKeptError, nowhere
from services.exports.feeding import Feeding
from services.exports.model import Claim, Export
from services.exports.store import ExportStore
from services.platform.clock import Clock
from services.platform.errors import Superseded, Unavailable, UserError
from services.platform.metrics import EXPORT_CHUNK_SECONDS, EXPORT_ROWS, EXPORTS
from services.platform.objects import ObjectStore
from services.platform.postgres import wait_or_stop

FIRST_RETRY = timedelta(seconds=1)
LONGEST_RETRY = timedelta(minutes=5)
_SHORT_REST_SHARE = 0.01

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a slice, a lease and a transaction last, how much is rested and how often tried, how long files stay."""

    slice_seconds: float
    lease: timedelta
    step_seconds: float
    rest_share: float
    tries: int
    kept: timedelta


def _is_nearly_done(export: Export, begins_at: datetime, began: float, ends: float) -> bool:
    """Tell whether the rest will be made within this slice, at the pace it has had.

    Then the file is begun. Not before: it is written in one go, and what a slice leaves unfinished is lost.
    """
    made, left = export.position - begins_at, export.wanted.end - export.position
    now = time.monotonic()
    return not export.is_cancelled and (now - began) * left * 2 < (ends - now) * made


class Worker:
    """Works on claimed exports."""

    def __init__(
        self,
        store: ExportStore,
        maker: ChunkMaker,
        objects: ObjectStore,
        *,
        limits: Limits,
        clock: Clock,
        stopping: asyncio.Event,
    ) -> None:
        self._store = store
        self._maker = maker
        self._objects = objects
        self._limits = limits
        self._clock = clock
        self._stopping = stopping

    async def work(self, claim: Claim) -> None:
        """Work on an export for a slice of time; every outcome is recorded, as far as PostgreSQL answers."""
        try:
            await self._slice(claim)
        except Superseded:
            log.info("export_taken_over", export=claim.key.export_id)
        except NoLongerKeptError as error:
            await self._fail(claim, "no_longer_kept", error)
        except (asyncpg.PostgresError, ValueError) as error:
            # What one export trips over must not end the process, and with it the others' exports.
            log.exception("export_tripped", export=claim.key.export_id)
            await self._wait(claim, "unexpected", error)
        except UserError as error:
            # The store refuses us, say: an operator may mend it, so it is tried again for a while.
            await self._wait(claim, "store_refuses", error)
        except Unavailable as error:
            await self._wait(claim, "server_away", error)

    async def _slice(self, claim: Claim) -> None:
        began = time.monotonic()
        ends = began + self._limits.slice_seconds
        export = await self._store.load(claim)
        begins_at = export.position
        are_busy = await self._are_others_busy()
        feeding: Feeding | None = None
        try:
            while True:
                if export.is_cancelled:
                    if feeding is not None:
                        # Before anybody may sweep up.
                        await feeding.close()
                    await self._store.end(claim, "cancelled", self._clock.now())
                    EXPORTS.labels("cancelled").inc()
                    log.info("export_cancelled", export=claim.key.export_id)
                    return
                # What has come to grief need not wait for further chunks.
                if export.position >= export.wanted.end or (feeding is not None and feeding.is_over):
                    if feeding is None:
                        feeding = await self._feed(claim, export)
                    await self._finish(claim, export, feeding)
                    return
                if self._stopping.is_set() or time.monotonic() > ends:
                    if feeding is not None:
                        # Before anybody may begin the same file.
                        await feeding.close()
                    await self._store.release(claim, self._clock.now())
                    return
                made = await self._step(claim, export, feeding, 0.0 if are_busy else self._limits.step_seconds)
                export = export._replace(
                    position=made.position, row_count=export.row_count + made.row_count, is_cancelled=made.is_cancelled
                )
                if feeding is None and _is_nearly_done(export, begins_at, began, ends):
                    feeding = await self._feed(claim, export)
                are_busy = await self._are_others_busy()
                # Leave the database to others: for long while they use it, for a moment anyway.
                share = self._limits.rest_share if are_busy else _SHORT_REST_SHARE
                await wait_or_stop(self._stopping, made.computing_seconds * share)
        finally:
            if feeding is not None:
                await feeding.close()

    async def _step(self, claim: Claim, export: Export, feeding: Feeding | None, seconds: float) -> Made:
        began = time.monotonic()
        feed = nowhere if feeding is None else feeding.add
        made = await self._maker.make_next(claim, export, seconds, feed)
        EXPORT_CHUNK_SECONDS.observe(time.monotonic() - began)
        EXPORT_ROWS.inc(made.row_count)
        return made

    async def _are_others_busy(self) -> bool:
        return self._limits.rest_share > _SHORT_REST_SHARE and await self._store.others_are_busy()

    async def _feed(self, claim: Claim, export: Export) -> Feeding:
        """Begin the file with the chunks that are recorded."""
        chunks = await self._store.chunks(claim)
        feeding = Feeding(self._objects, claim, export)
        for chunk in chunks:
            feeding.add(chunk)
        return feeding

    async def _finish(self, claim: Claim, export: Export, feeding: Feeding) -> None:
        renewing = asyncio.create_task(self._renew(claim, feeding))
        try:
            file = await feeding.file()
        except AssemblyStopped:
            await self._store.release(claim, self._clock.now())
            return
        except ChunkBrokenError as error:
            log.warning("export_begins_again", export=claim.key.export_id, reason=str(error))
            await self._store.start_again(claim)
            await self._store.release(claim, self._clock.now())
            return
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        now = self._clock.now()
        try:
            await self._store.finish(claim, file, now, now + self._limits.kept)
        except Superseded:
            # The file is nobody's. It lies under our own epoch.
            await asyncio.to_thread(self._objects.remove_all, f"{claim.key.files}/{claim.epoch}")
            raise
        EXPORTS.labels("done").inc()
        log.info("export_done", export=claim.key.export_id, rows=export.row_count, bytes=file.byte_count)

    async def _renew(self, claim: Claim, feeding: Feeding) -> None:
        """Keep the lease while the file is written; end the writing where that is over, or we are told to stop."""
        try:
            while not self._stopping.is_set():
                await wait_or_stop(self._stopping, self._limits.lease.total_seconds() / 3)
                await self._store.renew(claim, self._clock.now())
        finally:
            feeding.stop()

    async def _wait(self, claim: Claim, code: str, error: Exception) -> None:
        """Record why it goes on later, or that it was tried often enough."""
        log.warning("export_waits", export=claim.key.export_id, code=code, error=str(error))
        try:
            count = await self._store.wait(claim, self._clock.now() + FIRST_RETRY, code, str(error))
            if count >= self._limits.tries:
                await self._fail(claim, code, error)
                return
            delay = min(FIRST_RETRY * 2**count, LONGEST_RETRY) * random.uniform(0.5, 1)  # noqa: S311 - jitter
            await self._store.release(claim, self._clock.now() + delay)
        except (Unavailable, Superseded):
            # The lease ends by itself.
            return

    async def _fail(self, claim: Claim, code: str, error: Exception) -> None:
        try:
            await self._store.end(claim, "failed", self._clock.now(), code, str(error))
        except (Unavailable, Superseded):
            # The lease ends by itself, and whoever takes the export over finds the same.
            return
        EXPORTS.labels("failed").inc()
        log.error("export_failed", export=claim.key.export_id, code=code, error=str(error))
