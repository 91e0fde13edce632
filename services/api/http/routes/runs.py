"""Runs of export jobs, their parts, every attempt with the receiver's answer; and what is asked beside the schedule."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from services.api.http.call import Call
from services.api.http.decoding import Id, Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import Cursor, Limit, link, page, read_cursor
from services.api.http.problems import invalid, not_found
from services.api.http.routes import jobs
from services.api.job_queries import Job, find_job, list_jobs
from services.api.request_store import (
    Asker,
    RequestState,
    list_requests,
    request_backfill,
    request_give_up,
    request_recover,
    request_resend,
    request_retry,
    request_run_now,
)
from services.api.run_queries import Run, attempts_of, find_run, parse_run_id, parts_of, runs_page, with_intervals
from services.platform.errors import UserError

RunState = Literal["planned", "frozen", "delivered", "empty", "skipped", "failed", "given_up"]
REQUESTS_SHOWN = 100


class RunShown(msgspec.Struct, frozen=True):
    """A run of a job for one slot, with the name that the job had."""

    run_id: str
    job_id: int
    job_name: str
    job_version: int
    slot_start: Instant
    slot_end: Instant
    state: str
    parts: int
    rows: int
    bytes: int
    catalog_revision: int
    is_forced: bool
    intervals_present: int | None
    intervals_expected: int | None
    silent_meters: int | None
    resends: int
    planned_at: Instant
    frozen_at: Instant | None
    finished_at: Instant | None


class Runs(msgspec.Struct, frozen=True):
    """A page of runs, the newest slots first."""

    runs: list[RunShown]
    next_cursor: str | None


class RunsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which runs."""

    job_id: Id | None = None
    state: RunState | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class PartShown(msgspec.Struct, frozen=True):
    """A part of a run."""

    part: int
    is_manifest: bool
    state: str
    rows: int
    bytes: int
    sha256: str
    attempts: int
    next_attempt_at: Instant | None
    delivered_at: Instant | None


class Parts(msgspec.Struct, frozen=True):
    """The parts of a run in their order."""

    parts: list[PartShown]


class AttemptShown(msgspec.Struct, frozen=True):
    """An attempt to deliver a part; `detail` is what the receiver answered."""

    part: int
    attempt: int
    started_at: Instant
    finished_at: Instant
    outcome: str
    reason: str
    detail: str


class Attempts(msgspec.Struct, frozen=True):
    """Every attempt to deliver a run's parts."""

    attempts: list[AttemptShown]


class RequestShown(msgspec.Struct, frozen=True):
    """What was asked of delivery, and what became of it; `done_at` null: delivery has not come to it yet."""

    request_id: int
    kind: str
    requested_at: Instant
    requested_by: str
    runs: int
    done_at: Instant | None
    outcome: str


class Requests(msgspec.Struct, frozen=True):
    """The newest requests of a job."""

    requests: list[RequestShown]


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked of delivery.

    run_now: the present slot ends with what is closed. retry: waiting and failed parts are tried at once (of one run:
    `run_id`). resend: a delivered run once more, the same bytes. backfill: the past slots `from` to `until`. recover: a
    job that was paused by failures goes on and sends what it missed. give_up: a failed run (`run_id`), or the failed
    runs of the slots that end by `until`, are wanted no more: they are not sent, and no rows are kept for them.
    """

    kind: Literal["run_now", "retry", "resend", "backfill", "recover", "give_up"]
    run_id: Annotated[str, msgspec.Meta(max_length=60)] | None = None
    from_: Instant | None = msgspec.field(default=None, name="from")
    until: Instant | None = None


async def list_runs(call: Call) -> Answer:
    """List runs, the newest slots first."""
    query = call.query(RunsQuery)
    after = read_cursor(query, [datetime, int])
    job_ids = None if query.job_id is None else [query.job_id]
    if call.caller.grant.site_ids is not None:
        seen = {
            one.job_id for one in await list_jobs(call.connection, call.organization_id) if jobs.is_visible(call, one)
        }
        job_ids = sorted(seen if job_ids is None else seen & set(job_ids))
    rows = await runs_page(
        *(call.connection, call.organization_id, job_ids, query.state),
        after=None if after is None else (after[0], after[1]),
        limit=query.limit + 1,
    )
    found, cursor = page(query, rows, lambda one: [one.slot_start, one.job_id])
    return Answer(Runs([_shown(one) for one in found], cursor), headers=link(call, cursor))


async def show_run(call: Call) -> Answer:
    """Show a run."""
    run = await with_intervals(call.connection, call.organization_id, await _find(call))
    return Answer(_shown(run))


async def show_parts(call: Call) -> Answer:
    """Show the parts of a run."""
    parts = await parts_of(call.connection, call.organization_id, await _find(call))
    return Answer(
        Parts(
            [
                PartShown(
                    *(one.part, one.is_manifest, one.state, one.row_count, one.byte_count, one.sha256.hex()),
                    *(one.attempt_count, one.next_attempt_at, one.delivered_at),
                )
                for one in parts
            ]
        )
    )


async def show_attempts(call: Call) -> Answer:
    """Show every attempt to deliver a run."""
    attempts = await attempts_of(call.connection, call.organization_id, await _find(call))
    return Answer(Attempts([AttemptShown(*one) for one in attempts]))


async def show_requests(call: Call) -> Answer:
    """Show what was asked of a job's delivery."""
    job = await jobs.find(call)
    return Answer(Requests([_request(one) for one in await _requests(call, job)]))


async def ask(call: Call) -> Answer:
    """Ask delivery for something beside the schedule."""
    asked = call.body(RequestBody)
    job = await jobs.find(call, lock=True)
    request_id = await _ask(call, asked, job)
    [made] = [one for one in await _requests(call, job) if one.request_id == request_id]
    await call.audit(f"job.{asked.kind}", job.job_id, None, _request(made))
    return Answer(_request(made), 202)


async def _ask(call: Call, asked: RequestBody, job: Job) -> int:
    of_job = (call.connection, call.organization_id, job.job_id)
    asker = Asker(call.caller.actor, call.now)
    _check_times(asked)
    if asked.run_id is not None and asked.kind not in {"retry", "resend", "give_up"}:
        raise invalid("run_id", f"{asked.kind} concerns the job; leave run_id out")
    slot_start = None
    if asked.run_id is not None:
        job_id, slot_start = _parse(asked.run_id)
        if job_id != job.job_id:
            raise invalid("run_id", f"{asked.run_id} is no run of job {job.job_id}")
    if asked.kind == "run_now":
        return await request_run_now(*of_job, asker)
    if asked.kind == "retry":
        return await request_retry(*of_job, slot_start, asker)
    if asked.kind == "recover":
        return await request_recover(*of_job, asker)
    if asked.kind == "resend":
        if slot_start is None:
            raise invalid("run_id", "say which run is to be sent again")
        return await request_resend(*of_job, slot_start, asker)
    if asked.kind == "give_up":
        return await request_give_up(*of_job, slot_start, asked.until, asker)
    if asked.from_ is None or asked.until is None:
        raise invalid("from", "a backfill needs from and until")
    return await request_backfill(*of_job, asked.from_, asked.until, asker)


def _check_times(asked: RequestBody) -> None:
    """Raise Problem where times are given that mean nothing, or are lacking."""
    if asked.kind == "give_up":
        if asked.from_ is not None:
            raise invalid("from", "a give_up concerns all failed runs before until; leave from out")
        if (asked.run_id is None) == (asked.until is None):
            raise invalid("run_id", "say which runs are given up: run_id, or until for all that failed before it")
        return
    if asked.kind != "backfill" and (asked.from_ or asked.until):
        raise invalid("from", "from and until belong to a backfill")
    if asked.kind == "backfill" and (asked.from_ is None or asked.until is None):
        raise invalid("from", "a backfill needs from and until")


async def _find(call: Call) -> Run:
    name = call.path["run_id"][:60]
    job_id, slot_start = _parse(name, is_path=True)
    run = await find_run(call.connection, call.organization_id, job_id, slot_start)
    if run is None:
        raise not_found(f"run {name}")
    if call.caller.grant.site_ids is not None:
        try:
            job = await find_job(call.connection, call.organization_id, job_id)
        except UserError:
            raise not_found(f"run {name}") from None
        if not jobs.is_visible(call, job):
            raise not_found(f"run {name}")
    return run


def _parse(name: str, *, is_path: bool = False) -> tuple[int, datetime]:
    try:
        return parse_run_id(name)
    except ValueError as error:
        raise (not_found(f"run {name}") if is_path else invalid("run_id", str(error))) from None


async def _requests(call: Call, job: Job) -> list[RequestState]:
    return await list_requests(call.connection, call.organization_id, job.job_id, REQUESTS_SHOWN)


def _request(one: RequestState) -> RequestShown:
    return RequestShown(*one)


def _shown(run: Run) -> RunShown:
    return RunShown(
        run_id=run.run_id,
        job_id=run.job_id,
        job_name=run.job_name,
        job_version=run.job_version,
        slot_start=run.slot_start,
        slot_end=run.slot_end,
        state=run.state,
        parts=run.part_count,
        rows=run.row_count,
        bytes=run.byte_count,
        catalog_revision=run.catalog_revision,
        is_forced=run.is_forced,
        intervals_present=run.intervals_present,
        intervals_expected=run.intervals_expected,
        silent_meters=run.silent_meter_count,
        resends=run.resend_count,
        planned_at=run.planned_at,
        frozen_at=run.frozen_at,
        finished_at=run.finished_at,
    )


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/runs", "list_runs", "Runs, the newest slots first"),
        *(list_runs, "viewer", Runs),
        query=RunsQuery,
    ),
    Endpoint(
        *("GET", "/v1/runs/{run_id}", "show_run", "A run"),
        *(show_run, "viewer", RunShown),
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/runs/{run_id}/parts", "show_parts", "The parts of a run, with sizes and hashes"),
        *(show_parts, "viewer", Parts),
    ),
    Endpoint(
        *("GET", "/v1/runs/{run_id}/attempts", "show_attempts", "Every attempt, with the receiver's answer"),
        *(show_attempts, "viewer", Attempts),
    ),
    Endpoint(
        *("GET", "/v1/jobs/{job_id}/requests", "list_requests", "What was asked of a job beside its schedule"),
        *(show_requests, "viewer", Requests),
    ),
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/requests", "ask_job", "Run now, retry, resend, backfill, recover or give up"),
        *(ask, "exporter", RequestShown, 202),
        body=RequestBody,
        body_form="json",
        is_create=True,
    ),
)
