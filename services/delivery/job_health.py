"""What an attempt means for its run and its job: when a run has failed, when a job is paused, whom to tell of what.

Pure decisions. A run fails when its destination has taken nothing of the job for the whole retry window while the run
waited. An answer after which trying again is useless stops the job at once; its runs have not failed, they wait.
"""

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

FAILED_RUNS = "failed_runs"
"""The reason of the stop that follows several failed runs in a row."""

Told = Literal["well", "failing", "paused"]
News = Literal["failing", "paused", "recovered"]


class HealthRules(NamedTuple):
    """How patient we are."""

    retry_window: timedelta = timedelta(days=3)
    failing_after: timedelta = timedelta(minutes=15)
    """The organization is told of a job that has been failing for so long, not of every hiccup."""
    failed_runs: int = 5
    """So many failed runs in a row pause the job."""


class JobHealth(NamedTuple):
    """How a job fares: stored with its progress."""

    failing_since: datetime | None
    failed_run_count: int
    told: Told


class Consequence(NamedTuple):
    """What follows from an attempt."""

    health: JobHealth
    news: News | None = None
    is_run_failed: bool = False
    is_job_paused: bool = False


def after_success(health: JobHealth, *, is_run_delivered: bool) -> Consequence:
    """Return what follows when a part was taken: nothing fails any more.

    Runs count as failed in a row until one is delivered whole.
    """
    count = 0 if is_run_delivered else health.failed_run_count
    return Consequence(JobHealth(None, count, "well"), None if health.told == "well" else "recovered")


def after_failure(health: JobHealth, planned_at: datetime, now: datetime, rules: HealthRules) -> Consequence:
    """Return what follows when an attempt at a run that was planned at `planned_at` failed and may succeed later."""
    since = health.failing_since or now
    is_run_failed = now - max(since, planned_at) >= rules.retry_window
    count = health.failed_run_count + is_run_failed
    if count >= rules.failed_runs:
        return Consequence(JobHealth(since, count, "paused"), "paused", is_run_failed, is_job_paused=True)
    is_news = health.told == "well" and (is_run_failed or now - since >= rules.failing_after)
    told: Told = "failing" if is_news else health.told
    return Consequence(JobHealth(since, count, told), "failing" if is_news else None, is_run_failed)


def after_stop(health: JobHealth, now: datetime) -> Consequence:
    """Return what follows when the job was stopped: somebody must act."""
    return Consequence(JobHealth(health.failing_since or now, health.failed_run_count, "paused"), "paused")


def after_resume(health: JobHealth) -> JobHealth:
    """Return how a resumed job fares: everything is tried anew; the next stop is told again, and so is the recovery."""
    return JobHealth(None, 0, "failing" if health.told == "paused" else health.told)
