"""When a run has failed, when a job is paused, and what is told of it."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.delivery.job_health import (
    HealthRules,
    JobHealth,
    after_failure,
    after_resume,
    after_stop,
    after_success,
)

RULES = HealthRules()
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
WELL = JobHealth(None, 0, "well")


def test_the_first_failure_is_no_news() -> None:
    after = after_failure(WELL, NOW - HOUR, NOW, RULES)
    assert after.health == JobHealth(NOW, 0, "well")
    assert (after.news, after.is_run_failed, after.is_job_paused) == (None, False, False)


def test_a_job_that_fails_for_a_while_is_told_once() -> None:
    health = after_failure(WELL, NOW, NOW, RULES).health
    told = after_failure(health, NOW, NOW + RULES.failing_after, RULES)
    assert told.news == "failing"
    assert after_failure(told.health, NOW, NOW + HOUR, RULES).news is None
    recovered = after_success(told.health, is_run_delivered=False)
    assert recovered.news == "recovered"
    assert recovered.health == WELL
    assert after_success(WELL, is_run_delivered=True).news is None


def test_a_run_fails_after_the_window_counted_from_when_it_waited_and_the_destination_failed() -> None:
    since = JobHealth(NOW, 0, "failing")
    window = RULES.retry_window
    assert not after_failure(since, NOW - 9 * HOUR, NOW + window - HOUR, RULES).is_run_failed
    assert after_failure(since, NOW - 9 * HOUR, NOW + window, RULES).is_run_failed
    # A run that was planned later has its own three days.
    assert not after_failure(since, NOW + HOUR, NOW + window, RULES).is_run_failed
    # A run that waited long for another reason (we were away, the job was stopped) is not given up at once.
    assert not after_failure(WELL, NOW - 10 * window, NOW, RULES).is_run_failed


def test_five_failed_runs_in_a_row_pause_the_job() -> None:
    health, planned_at = JobHealth(NOW, 0, "failing"), NOW
    for number in range(1, 6):
        after = after_failure(health, planned_at, planned_at + RULES.retry_window, RULES)
        assert after.is_run_failed
        assert after.is_job_paused == (number == 5)
        assert after.news == ("paused" if number == 5 else None)
        health, planned_at = after.health, planned_at + HOUR
    assert health == JobHealth(NOW, 5, "paused")


def test_a_delivered_part_is_not_yet_a_delivered_run() -> None:
    health = JobHealth(NOW, 4, "failing")
    part = after_success(health, is_run_delivered=False).health
    assert part.failed_run_count == 4
    assert after_success(part, is_run_delivered=True).health.failed_run_count == 0


def test_a_stop_is_told_and_told_again_after_a_resume() -> None:
    stopped = after_stop(WELL, NOW)
    assert (stopped.news, stopped.health.told) == ("paused", "paused")
    resumed = after_resume(stopped.health)
    assert resumed == JobHealth(None, 0, "failing")
    assert after_stop(resumed, NOW).news == "paused"
    assert after_success(resumed, is_run_delivered=True).news == "recovered"
    assert after_resume(WELL) == WELL


@given(st.lists(st.sampled_from(["success", "failure", "stop", "resume"]), max_size=60), st.integers(1, 400))
def test_news_alternate_so_nobody_is_told_the_same_twice_in_a_row(steps: list[str], minutes: int) -> None:
    health, now, news = WELL, NOW, ["recovered"]
    for step in steps:
        now += timedelta(minutes=minutes)
        if step == "resume":
            health = after_resume(health)
            continue
        if step == "stop" and health.told == "paused":
            continue  # nothing is sent while a job is stopped
        if step == "success":
            after = after_success(health, is_run_delivered=True)
        else:
            after = after_stop(health, now) if step == "stop" else after_failure(health, NOW, now, RULES)
        health = after.health
        if after.news == "recovered":
            assert news[-1] != "recovered"
        if after.news == "failing":
            assert news[-1] == "recovered"
        if after.news is not None:
            news.append(after.news)
