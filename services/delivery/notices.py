"""What an organization is told when a job's state changes: facts for programs, sentences for people."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from services.core.schedule import Slot
from services.core.times import iso_seconds
from services.delivery.job_health import FAILED_RUNS, HealthRules, News


class Notice(msgspec.Struct, frozen=True):
    """The body of a notification: schemas/http/job-state.v1.schema.json."""

    event: str
    at: str
    organization: str
    job_id: int
    job_name: str
    reason: str
    error: str
    failing_since: str | None
    run: str | None
    window_start: str | None
    window_end: str | None
    waiting_runs: int
    failed_runs: int
    meaning: str
    action: str


class Occasion(msgspec.Struct, frozen=True):
    """What happened, as the transaction that stores it knows it."""

    news: News
    at: datetime
    reason: str
    detail: str
    failing_since: datetime | None
    run: str | None = None
    slot: Slot | None = None


def notice(occasion: Occasion, job: Mapping[str, Any], rules: HealthRules) -> Notice:
    """Return the notice for a job (organization, job_id, name, waiting_runs, failed_runs)."""
    meaning, action = _sentences(occasion, job, rules)
    return Notice(
        event=f"job.{occasion.news}",
        at=iso_seconds(occasion.at),
        organization=job["organization"],
        job_id=job["job_id"],
        job_name=job["name"],
        reason=occasion.reason,
        error=occasion.detail,
        failing_since=None if occasion.failing_since is None else iso_seconds(occasion.failing_since),
        run=occasion.run,
        window_start=None if occasion.slot is None else iso_seconds(occasion.slot.start),
        window_end=None if occasion.slot is None else iso_seconds(occasion.slot.end),
        waiting_runs=job["waiting_runs"],
        failed_runs=job["failed_runs"],
        meaning=meaning,
        action=action,
    )


def subject(told: Notice) -> str:
    """Return the subject of an e-mail: one line."""
    what = {"job.failing": "fails", "job.paused": "is stopped", "job.recovered": "works again"}[told.event]
    return f"Meterpost: export job {told.job_id} {told.job_name!r} {what}"


def plain_text(told: Notice) -> str:
    """Return the text of an e-mail."""
    lines = [
        f"Job:      {told.job_id} {told.job_name!r} of {told.organization}",
        f"Window:   {told.window_start} to {told.window_end} (run {told.run})" if told.run else "Window:   -",
        f"Since:    {told.failing_since or told.at}",
        f"Error:    {told.error or '-'} ({told.reason})",
        f"Waiting:  {told.waiting_runs:,} runs; failed: {told.failed_runs:,} runs",
        "",
        f"What it means for your data: {told.meaning}",
        "",
        f"What to do: {told.action}",
    ]
    return "\n".join(lines) + "\n"


def _sentences(occasion: Occasion, job: Mapping[str, Any], rules: HealthRules) -> tuple[str, str]:
    """Return what it means for the data, and what to do."""
    job_id = job["job_id"]
    window = _duration(rules.retry_window.total_seconds())
    if occasion.news == "recovered":
        meaning = "Deliveries succeed again. What waited is sent now, the oldest first; nothing was lost."
        if not job["failed_runs"]:
            return meaning, "Nothing."
        meaning += f" {job['failed_runs']:,} runs that failed before are not sent by themselves."
        action = (
            f"Run `meterpost jobs recover {job_id}` to have the failed runs sent; `meterpost runs give-up RUN` gives "
            "up one that nobody wants any more."
        )
    elif occasion.news == "failing":
        meaning = (
            "Nothing is lost: the data of this window and of those after it is kept, and sent as soon as the server "
            f"takes it. It is tried again by itself; a run that nobody took for {window} counts as failed."
        )
        action = "Look whether the server named in the job is up, reachable and has room."
    elif occasion.reason == FAILED_RUNS:
        meaning = (
            f"{rules.failed_runs} runs in a row could not be delivered for {window} each, so the job was paused and "
            "nothing more is sent. The data is kept."
        )
        action = f"Mend the server, then run `meterpost jobs recover {job_id}`: what was missed is sent."
    else:
        meaning = (
            "The server's answer says that trying again is useless, so nothing is sent until somebody acts. The data "
            "is kept, that of later windows, too."
        )
        action = f"Do what the error says, then run `meterpost jobs resume {job_id}`: what waits is sent."
    return meaning, action


def _duration(seconds: float) -> str:
    for length, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= length and seconds % length == 0:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:g} seconds"
