"""Who is worked on next: jobs that are due, oldest first, within the shares that are free."""

import asyncio
import time
from datetime import datetime, timedelta

import structlog

from services.delivery.giving_up import GiveUps
from services.delivery.job_store import JobStore, Release
from services.delivery.model import Claim
from services.delivery.slots import Slots
from services.delivery.worker import Worker
from services.platform.clock import Clock
from services.platform.errors import Superseded, Unavailable
from services.platform.postgres import Patience

# A job that fails by a mistake of ours is left alone for so long, so that it does not keep the others from their turn.
AFTER_OWN_MISTAKE = timedelta(minutes=1)
# What no event announces (new and edited jobs) is looked for at every second look, and at least so often.
HOUSEKEEPING_SECONDS = 2.0
LAST_MOMENTS_SECONDS = 2.0

log = structlog.get_logger()


class Dispatcher:
    """Claims jobs and runs a worker's slice for each, until told to stop."""

    def __init__(
        self,
        jobs: JobStore,
        worker: Worker,
        *,
        transport: str,
        lease: timedelta,
        look_seconds: float,
        clock: Clock,
        patience: Patience,
        slots: Slots,
        give_ups: GiveUps,
    ) -> None:
        self._give_ups = give_ups
        self._slots = slots
        self._jobs = jobs
        self._worker = worker
        self._transport = transport
        self._lease = lease
        self._look_seconds = look_seconds
        self._housekeeping_seconds = min(HOUSEKEEPING_SECONDS, 2 * look_seconds)
        self._clock = clock
        self._patience = patience
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_housekeeping = float("-inf")
        self.bell = asyncio.Event()
        """Set it to have the tables looked into now."""

    async def run(self, *, finish_seconds: float) -> None:
        """Work until told to stop, then let the current slices end for at most `finish_seconds`."""
        stopping = self._patience.stopping
        try:
            await self._patience.postgres(lambda: self._jobs.take_back(self._clock.now()))
            while not stopping.is_set():
                self._patience.health.progress()
                self.bell.clear()
                await self._patience.postgres(self._look)
                await self._wait()
        except Unavailable:
            log.info("stopped_while_waiting")
        finally:
            await self._finish(finish_seconds)

    async def _look(self) -> None:
        now = self._clock.now()
        if time.monotonic() - self._last_housekeeping >= self._housekeeping_seconds:
            await self._give_ups.honour(now)
            await self._jobs.wake_edited(now)
            if await self._worker.adopt_new_jobs():
                self.bell.set()
            else:
                self._last_housekeeping = time.monotonic()
            self._slots.has_several_organizations = await self._jobs.has_several_organizations()
        await self._jobs.wake(now)
        while self._slots.is_free and not self._patience.stopping.is_set():
            claim = await self._jobs.claim(self._clock.now(), self._lease, self._slots.busy())
            if claim is None:
                return
            self._start(claim)

    def _start(self, claim: Claim) -> None:
        self._slots.take(claim)
        task = asyncio.create_task(self._slice(claim))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, claim))

    def _ended(self, task: asyncio.Task[None], claim: Claim) -> None:
        self._tasks.discard(task)
        self._slots.give_back(claim)
        self.bell.set()

    async def _slice(self, claim: Claim) -> None:
        try:
            await self._worker.work(claim)
        except Superseded as error:
            log.warning("superseded", error=str(error), action="drop the result")
        except Unavailable as error:
            # Whatever was not recorded is done again, as soon as PostgreSQL is back.
            log.warning("slice_dropped", job=claim.job.job_id, error=str(error))
            await self._give_back_patiently(claim)
        except Exception as error:
            # A mistake of ours, met by one job: it must not end the deliveries of all others.
            log.exception("slice_failed", job=claim.job.job_id, error=repr(error))
            await self._give_back(claim, self._clock.now() + AFTER_OWN_MISTAKE)
        except asyncio.CancelledError:
            # The deadline of the shutdown: somebody else may go on at once.
            await self._give_back(claim, self._clock.now())
            raise

    async def _give_back(self, claim: Claim, next_attempt_at: datetime) -> None:
        try:
            async with asyncio.timeout(LAST_MOMENTS_SECONDS):
                await self._jobs.release(claim, Release(next_attempt_at, self._transport, claim.destination))
        except (Unavailable, TimeoutError) as error:
            log.warning("not_released", job=claim.job.job_id, error=str(error), action="the lease ends by itself")

    async def _give_back_patiently(self, claim: Claim) -> None:
        try:
            await self._patience.postgres(
                lambda: self._jobs.release(claim, Release(self._clock.now(), self._transport, claim.destination))
            )
        except Unavailable:
            log.info("not_released", job=claim.job.job_id, action="the lease ends by itself")

    async def _wait(self) -> None:
        told = asyncio.ensure_future(self._patience.stopping.wait())
        rung = asyncio.ensure_future(self.bell.wait())
        await asyncio.wait({told, rung}, timeout=self._look_seconds, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        rung.cancel()

    async def _finish(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
