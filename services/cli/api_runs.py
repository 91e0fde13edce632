"""`meterpost --url … runs` and the requests: what the same commands do over the HTTP API."""

from datetime import datetime
from typing import Any

from services.api.request_store import RequestState
from services.api.run_queries import RUN_STATES, Attempt, Part, Run, parse_run_id
from services.cli.api_session import Api
from services.cli.session import Session
from services.cli.show import utc
from services.core.times import parse_instant
from services.platform.errors import UserError


async def runs(api: Api, job_id: int | None, state: str | None, limit: int) -> list[Run]:
    """Return runs, the newest slots first. Raises UserError."""
    if state is not None and state not in RUN_STATES:
        raise UserError(f"no run is ever {state!r}; states: {', '.join(RUN_STATES)}")
    return [_run(one) for one in await api.pages("/v1/runs", "runs", limit, job_id=job_id, state=state)]


async def run(api: Api, name: str) -> tuple[Run, list[Part], list[Attempt]]:
    """Return a run, its parts and every attempt. Raises UserError."""
    run_id(name)
    path = f"/v1/runs/{name}"
    found = _run(await api.get(path))
    parts = (await api.get(f"{path}/parts"))["parts"]
    attempts = (await api.get(f"{path}/attempts"))["attempts"]
    return found, [_part(one) for one in parts], [_attempt(one) for one in attempts]


async def organization_name(api: Api) -> str:
    """Return the name of the organization that the client belongs to."""
    return str((await api.get("/v1/me"))["organization_name"])


async def ask(session: Session, api: Api, job_id: int, sentence: str, **asked: Any) -> None:
    """Ask delivery for something, and say so."""
    body = {name.rstrip("_"): value for name, value in asked.items() if value is not None}
    made = await api.send("POST", f"/v1/jobs/{job_id}/requests", body)
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "request_id": made["request_id"]})
    else:
        session.answer.say(f"{sentence} `meterpost jobs requests {job_id}` shows what becomes of it.")


async def run_now(session: Session, api: Api, job_id: int) -> None:
    """End the present slot with what is closed."""
    sentence = f"The present slot of job {job_id} ends with what is closed now, and is sent."
    await ask(session, api, job_id, sentence, kind="run_now")


async def retry(session: Session, api: Api, *, run: str | None, job: int | None) -> None:
    """Try what waits or failed again."""
    if (run is None) == (job is None):
        raise UserError("say what to try again: a RUN, or all of a job by --job ID")
    job_id = job if run is None else run_id(run)[0]
    if job_id is not None:
        await ask(session, api, job_id, "The parts that wait are tried again at once.", kind="retry", run_id=run)


async def resend(session: Session, api: Api, run: str) -> None:
    """Send a delivered run again."""
    await ask(session, api, run_id(run)[0], f"The run {run} is sent again.", kind="resend", run_id=run)


GIVEN_UP_SENTENCE = "What failed is given up: it is not sent, and its rows are no longer kept for it."


async def give_up(session: Session, api: Api, *, run: str | None, job: int | None, before: str | None) -> None:
    """Give up failed runs."""
    job_id, _slot_start, until = to_give_up(run, job, before)
    instant = None if until is None else until.isoformat()
    await ask(session, api, job_id, GIVEN_UP_SENTENCE, kind="give_up", run_id=run, until=instant)


def to_give_up(run: str | None, job: int | None, before: str | None) -> tuple[int, datetime | None, datetime | None]:
    """Return the job, and either the slot of the run or until when all slots are meant. Raises UserError."""
    if run is not None and job is None and before is None:
        return (*run_id(run), None)
    if run is None and job is not None and before is not None:
        return job, None, _instant(before, "--before")
    raise UserError("say what to give up: a RUN, or the failed runs of a job by --job ID --before TIME")


async def backfill(session: Session, api: Api, job_id: int, *, start: str, end: str) -> None:
    """Send past slots."""
    between = _instant(start, "--from"), _instant(end, "--to")
    sentence = f"The slots from {utc(between[0])} to {utc(between[1])} are sent."
    await ask(
        session, api, job_id, sentence, kind="backfill", from_=between[0].isoformat(), until=between[1].isoformat()
    )


async def recover(session: Session, api: Api, job_id: int) -> None:
    """Let a job go on and send what it missed."""
    await ask(session, api, job_id, f"What job {job_id} missed is sent, the oldest first.", kind="recover")


async def requests(api: Api, job_id: int, limit: int) -> list[RequestState]:
    """Return what was asked of a job."""
    found = (await api.get(f"/v1/jobs/{job_id}/requests"))["requests"][:limit]
    return [
        RequestState(
            one["request_id"],
            one["kind"],
            parse_instant(one["requested_at"]),
            one["requested_by"],
            one["runs"],
            _maybe(one["done_at"]),
            one["outcome"],
        )
        for one in found
    ]


def run_id(name: str) -> tuple[int, datetime]:
    """Return job and slot of a run's name. Raises UserError."""
    try:
        return parse_run_id(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _run(one: dict[str, Any]) -> Run:
    return Run(
        one["job_id"],
        one["job_name"],
        parse_instant(one["slot_start"]),
        parse_instant(one["slot_end"]),
        one["job_version"],
        one["catalog_revision"],
        one["state"],
        one["parts"],
        one["rows"],
        one["bytes"],
        parse_instant(one["planned_at"]),
        _maybe(one["frozen_at"]),
        _maybe(one["finished_at"]),
        one["is_forced"],
        one["intervals_present"],
        one["intervals_expected"],
        one["silent_meters"],
        one["resends"],
    )


def _part(one: dict[str, Any]) -> Part:
    return Part(
        one["part"],
        one["rows"],
        one["bytes"],
        bytes.fromhex(one["sha256"]),
        one["state"],
        one["attempts"],
        _maybe(one["next_attempt_at"]),
        _maybe(one["delivered_at"]),
        one["is_manifest"],
    )


def _attempt(one: dict[str, Any]) -> Attempt:
    times = {name: parse_instant(one[name]) for name in ("started_at", "finished_at")}
    return Attempt(**{**one, **times})


def _maybe(text: str | None) -> datetime | None:
    return None if text is None else parse_instant(text)


def _instant(text: str, option: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
