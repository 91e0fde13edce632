"""One slice of work on one job: plan what became due, freeze the oldest run, send its parts in order."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

import structlog

from services.core.catalog_records import CATALOG
from services.core.file_transfer import HOSTED
from services.core.retry import Answer, Verdict
from services.delivery.circuits import Account, Circuits
from services.delivery.hosted_deposits import HostedDeposits, HostedReceiver
from services.delivery.interval_counts import IntervalCounts, Intervals
from services.delivery.job_store import CATALOG_INCOMPLETE, MAX_ADOPTED, Adopted, JobStore, Release
from services.delivery.manifests import make_manifests
from services.delivery.model import (
    MEASUREMENTS,
    NOWHERE,
    Claim,
    FrozenPart,
    Job,
    JobKey,
    Manifest,
    Run,
    Version,
    WaitingPart,
)
from services.delivery.planning import MAX_RUNS_AT_ONCE, FilledWindows, Plan, first_plan, in_force, plan
from services.delivery.requests import Requests
from services.delivery.row_store import RowStore
from services.delivery.run_store import Recorded, RunStore
from services.delivery.sending import Freezer, Sender
from services.delivery.transports.base import Receiver, Transport
from services.delivery.unsealing import Discreet, Withheld, unseal
from services.platform.clock import Clock
from services.platform.errors import OperatorNeeded, UserError
from services.platform.metrics import DELIVERY_RUNS
from services.platform.postgres import Patience, Pool
from services.platform.secrets import KeyMissing, Vault

BAD_SETTINGS = "bad_settings"
SECRET_KEY_MISSING = "secret_key_missing"  # noqa: S105 - a reason

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a slice may take, how long a claim holds, and how many runs are planned ahead."""

    slice_seconds: float
    lease: timedelta
    planned_runs: int


@dataclass(frozen=True, slots=True)
class Stores:
    """The tables."""

    jobs: JobStore
    runs: RunStore
    rows: RowStore
    intervals: IntervalCounts


class Stopped(Exception):  # noqa: N818 - not an error: the slice ends because the job is stopped for now
    """The job was stopped; nothing is left to release."""


class Worker:
    """Works on claimed jobs of one transport. Raises Superseded where a claim is over, Unavailable as the stores do."""

    def __init__(
        self,
        transport_name: str,
        transport: Transport,
        stores: Stores,
        *,
        freezer: Freezer,
        sender: Sender,
        limits: Limits,
        clock: Clock,
        patience: Patience,
        requests: Requests,
        circuits: Circuits,
        vault: Vault,
        pool: Pool,
    ) -> None:
        self._pool = pool
        self._requests = requests
        self._circuits = circuits
        self._vault = vault
        self._transport_name = transport_name
        self._transport = transport
        self._stores = stores
        self._freezer = freezer
        self._sender = sender
        self._limits = limits
        self._clock = clock
        self._patience = patience

    async def adopt_new_jobs(self) -> bool:
        """Give jobs that nobody follows yet their first slot; return whether there were too many for one go."""
        after = 0
        # Jobs whose time has not come stay new ones: those behind them must not wait for them.
        while new := await self._stores.jobs.new_jobs(after):
            after = new[-1].key.job_id
            opened_at = await self._stores.jobs.opened_at()
            adopted = []
            for job in new:
                first = first_plan(job.starts_at, opened_at, job.versions)
                if first is not None and first.next_version.transport == self._transport_name:
                    adopted.append(Adopted(job, first, self._address(job.key, first.next_version)))
            if adopted:
                log.info("jobs_adopted", count=await self._stores.jobs.adopt(adopted))
                return len(new) == MAX_ADOPTED
            if len(new) < MAX_ADOPTED:
                break
        return False

    async def work(self, claim: Claim) -> None:
        """Work on a job for a slice of time and release it with the time at which it goes on."""
        renewal = asyncio.create_task(self._renew(claim))
        try:
            release = await self._slice(claim)
            if release is not None:
                await self._patience.postgres(lambda: self._stores.jobs.release(claim, release))
        except Stopped:
            return
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(self._limits.lease.total_seconds() / 3)
            lease_until = self._clock.now() + self._limits.lease
            await self._patience.postgres(lambda: self._stores.jobs.renew(claim, lease_until))  # noqa: B023 - at once

    async def _slice(self, claim: Claim) -> Release | None:
        """Return how to release the job; None where it is over for good."""
        ends = time.monotonic() + self._limits.slice_seconds
        job = await self._stores.jobs.load(claim)
        if job.is_deleted:
            await self._stores.jobs.retire(claim)
            return None
        following = await self._plan(claim, job)
        following, is_asked_more = await self._requests.honour(claim, job, following)
        while True:
            found = await self._stores.runs.next_unfinished(claim)
            if found is None:
                return self._rest(job.key, following, is_asked_more=is_asked_more)
            run, part = found
            version = job.version(run.job_version)
            newest = job.newest(version.transport)
            if version.transport != self._transport_name:
                return Release(self._clock.now(), version.transport, NOWHERE)
            address = self._address(job.key, newest)
            again_at = None
            if not run.is_frozen:
                await self._freeze(claim, run, version)
            elif address != claim.destination:
                # Back into the queue: how many send to one destination at a time is counted at the claim.
                again_at = self._clock.now()
            elif part is not None:
                again_at = await self._send(claim, run, part, version, newest)
            if again_at is None and (time.monotonic() > ends or self._patience.stopping.is_set()):
                again_at = self._clock.now()
            if again_at is not None:
                return Release(again_at, self._transport_name, address)

    def _rest(self, job: JobKey, following: Plan, *, is_asked_more: bool) -> Release:
        version = following.next_version
        # More slots may be due, or asked for, than were planned at once: then the job is not at rest.
        next_attempt_at = self._clock.now() if following.is_next_due or is_asked_more else None
        if next_attempt_at is None:
            log.debug("job_rests", job=job.job_id, next_slot=following.next_slot.start.isoformat())
        return Release(next_attempt_at, version.transport, self._address(job, version))

    async def _plan(self, claim: Claim, job: Job) -> Plan:
        limit = self._limits.planned_runs - job.unfinished_runs
        due = plan(job.planned_until, job.versions, job.pauses, job.closed_until, limit)
        if due.is_next_due and limit > 0 and due.next_version.data == MEASUREMENTS:
            # A long way to catch up. Where nothing was measured, a run for each slot would be work without a result.
            filled = await self._filled_windows(job)
            due = plan(job.planned_until, job.versions, job.pauses, job.closed_until, limit, filled)
        newest = job.versions[-1].version
        if due.runs or newest != job.seen_version:
            await self._stores.runs.add(claim, due, newest, self._clock.now())
        needless = [run for run in due.runs if run.state != "planned"]
        for state, count in Counter(run.state for run in needless).items():
            DELIVERY_RUNS.labels(state).inc(count)
            slots = [run.slot.start.isoformat() for run in needless if run.state == state]
            log.info("runs_not_needed", job=job.key.job_id, state=state, count=count, first=slots[0], last=slots[-1])
        return due

    async def _filled_windows(self, job: Job) -> FilledWindows:
        version = in_force(job.versions, job.planned_until)
        resolution_minutes = version.resolution_minutes
        furthest = job.planned_until + MAX_RUNS_AT_ONCE * timedelta(minutes=version.frequency_minutes)
        until = min(job.closed_until[resolution_minutes], furthest)
        return await self._stores.rows.filled_windows(
            job.key.organization_id, resolution_minutes, job.planned_until, until
        )

    async def _freeze(self, claim: Claim, run: Run, version: Version) -> None:
        try:
            parts, intervals = await self._parts(run, version)
        except OperatorNeeded as error:
            await self._stop(claim, CATALOG_INCOMPLETE, f"{error}: add it, then resume the job")
        except UserError as error:
            await self._stop(claim, BAD_SETTINGS, f"{error}; correct them, then resume the job")
        else:
            manifests = await self._manifests(run, version, parts) if version.has_manifest and parts else []
            await self._stores.runs.freeze(claim, run, parts, intervals, self._clock.now(), manifests)
            if not parts:
                DELIVERY_RUNS.labels("empty").inc()
                log.info("run_empty", job=run.job.job_id, slot=run.slot.start.isoformat())

    async def _parts(self, run: Run, version: Version) -> tuple[list[FrozenPart], Intervals | None]:
        """Render the run, and count how complete it is; a catalog has no intervals."""
        if version.data == CATALOG:
            return await self._freezer.catalog(run, version), None
        tally = await self._stores.intervals.tally(run, version)
        parts = await self._freezer.parts(run, version, tally)
        return parts, tally.result()

    async def _manifests(self, run: Run, version: Version, parts: Sequence[FrozenPart]) -> list[Manifest]:
        completeness = None
        if version.data == MEASUREMENTS:
            completeness = await self._stores.rows.completeness(run, version)
        last = await self._stores.runs.last_manifest(run)
        ending = self._transport.part_format(version.settings).ending
        return make_manifests(self._sender.installation_id, run, version, parts, ending, completeness, last)

    async def _send(
        self, claim: Claim, run: Run, part: WaitingPart, version: Version, newest: Version
    ) -> datetime | None:
        """Send the run's next part; return when to try again, or None to go on at once."""
        if part.next_attempt_at is not None and part.next_attempt_at > self._clock.now():
            return part.next_attempt_at
        destination = await self._destination(claim, newest)
        attempt = await self._sender.attempt(run, version, part, destination)
        # The receiver has answered: PostgreSQL away for a moment must not make us send it again.
        recorded = await self._patience.postgres(lambda: self._stores.runs.record(claim, run, part, attempt))
        answer = attempt.answer
        self._circuits.note(Account(claim.job.organization_id, destination.address), answer)
        event = {"job": run.job.job_id, "slot": run.slot.start.isoformat(), "part": part.number}
        if recorded is Recorded.JOB_STOPPED:
            log.error("job_stopped", **event, reason=answer.reason)
            raise Stopped
        if recorded is Recorded.RUN_FAILED:
            DELIVERY_RUNS.labels("failed").inc()
            log.error("run_failed", **event, reason=answer.reason)
            return None
        if answer.verdict is Verdict.RETRY:
            log.warning("part_waits", **event, reason=answer.reason, attempts=part.attempt_count + 1)
        if recorded is Recorded.RUN_DELIVERED:
            DELIVERY_RUNS.labels("delivered").inc()
            log.info("run_delivered", **event)
        return attempt.next_attempt_at

    async def _destination(self, claim: Claim, version: Version) -> Receiver:
        try:
            unsealed = unseal(self._vault, claim.job, version.settings)
            receiver = Discreet(self._transport, unsealed)
        except KeyMissing as error:
            # Nobody's settings are wrong but ours, so no job is stopped by it.
            log.warning("secret_key_missing", job=claim.job.job_id, error=str(error))
            return Withheld(NOWHERE, Answer(Verdict.RETRY, SECRET_KEY_MISSING, str(error)))
        except UserError as error:
            await self._stop(claim, BAD_SETTINGS, f"{error}; correct them, then resume the job")
        if HOSTED in unsealed.settings:
            return HostedReceiver(receiver, HostedDeposits(self._pool, claim.job.organization_id))
        return receiver

    async def _stop(self, claim: Claim, reason: str, detail: str) -> NoReturn:
        await self._stores.jobs.stop(claim, self._clock.now(), reason, detail)
        log.error("job_stopped", job=claim.job.job_id, reason=reason)
        raise Stopped

    def _address(self, job: JobKey, version: Version) -> str:
        if version.transport != self._transport_name:
            return NOWHERE
        try:
            return self._transport.destination(unseal(self._vault, job, version.settings).settings).address
        except (UserError, KeyMissing):
            return NOWHERE
