"""Does what somebody asked of a job beside its schedule: run now, retry, resend, backfill, recover."""

from collections.abc import Mapping
from datetime import datetime

import structlog

from services.core.catalog_records import CATALOG
from services.core.schedule import Slot, next_slot, step_of
from services.core.times import floor_to
from services.delivery.backfill import fill, first_kept
from services.delivery.job_store import JobStore
from services.delivery.model import MEASUREMENTS, Claim, Job, Request
from services.delivery.planning import Plan, PlannedRun, in_force
from services.delivery.request_store import RequestStore
from services.delivery.row_store import RowStore
from services.platform.clock import Clock

log = structlog.get_logger()


class Requests:
    """Works on requests of a claimed job. Raises as the stores do."""

    def __init__(self, store: RequestStore, jobs: JobStore, rows: RowStore, clock: Clock, planned_runs: int) -> None:
        self._store = store
        self._jobs = jobs
        self._rows = rows
        self._clock = clock
        self._planned_runs = planned_runs

    async def honour(self, claim: Claim, job: Job, following: Plan) -> tuple[Plan, bool]:
        """Do what was asked, in the order of asking; return where the job's schedule goes on, and whether more waits.

        A backfill that is not done yet waits for its runs to be worked off, and what was asked after it waits, too.
        """
        for request in job.requests:
            log.info("request", job=claim.job.job_id, request=request.request_id, kind=request.kind)
            if request.kind in ("retry", "recover"):
                await self._store.retry(claim, request, self._clock.now())
            elif request.kind == "resend":
                await self._store.resend(claim, request, self._clock.now())
            elif request.kind == "run_now":
                following = await self._run_now(claim, job, request, following)
            elif not await self._backfill(claim, job, request, following):
                return following, True
        return following, False

    async def _run_now(self, claim: Claim, job: Job, request: Request, following: Plan) -> Plan:
        plan = ended_early(job, following)
        if plan is None:
            after = following.next_slot.start.isoformat()
            reason = f"no window after {after} is closed yet"
            if following.is_next_due:
                reason = "the job has a backlog that is sent first"
            elif following.next_version.data == CATALOG:
                reason = (
                    f"the platform's clock is less than a minute after {after}, where the next catalog's time begins"
                )
            await self._store.refuse(claim, request, self._clock.now(), reason)
            return following
        await self._store.run_now(claim, request, plan, job.versions[-1].version, self._clock.now())
        return plan

    async def _backfill(self, claim: Claim, job: Job, request: Request, following: Plan) -> bool:
        if request.range_start is None or request.range_end is None:
            raise RuntimeError("the table refuses a backfill without a range")
        # A slot of which retention has dropped rows must not get a run that says it was empty.
        kept_from = await self._jobs.opened_at()
        wanted = _wanted(job, Slot(request.range_start, request.range_end), following, kept_from)
        if wanted is None:
            reason = "the range holds nothing that was measured before the job's next slot and is still kept"
            await self._store.refuse(claim, request, self._clock.now(), reason)
            return True
        start = max(wanted.start, request.planned_until or wanted.start)
        rest = Slot(start, max(start, wanted.end))
        version = in_force(job.versions, start)
        filled = None
        if version.data == MEASUREMENTS:
            filled = await self._rows.filled_windows(claim.job.organization_id, version.resolution_minutes, *rest)
        limit = self._planned_runs - job.unfinished_runs
        taken = await self._store.taken(claim, rest)
        filling = fill(rest, taken, job.versions, limit, filled, kept_from)
        return await self._store.backfill(claim, request, wanted, filling, kept_from, self._clock.now())


def _wanted(job: Job, asked: Slot, following: Plan, kept_from: Mapping[int, datetime]) -> Slot | None:
    """Return the range without what is still to come, and what is older than the first window or no longer kept."""
    end = min(asked.end, following.next_slot.start)
    start = first_kept(Slot(asked.start, end), job.versions, kept_from) if asked.start < end else None
    return None if start is None else Slot(start, end)


def ended_early(job: Job, following: Plan) -> Plan | None:
    """Return the plan that ends the next slot at the last closed window; None where nothing new is closed."""
    version, slot = following.next_version, following.next_slot
    closed_until = job.closed_until.get(version.resolution_minutes)
    if closed_until is None or following.is_next_due:
        return None
    end = min(slot.end, floor_to(closed_until, step_of(version.resolution_minutes)))
    if end <= slot.start:
        return None
    run = PlannedRun(Slot(slot.start, end), version.version, "planned")
    then = in_force(job.versions, end)
    rest = next_slot(end, then.frequency_minutes, then.resolution_minutes)
    return Plan([run], rest, then, is_next_due=False)
