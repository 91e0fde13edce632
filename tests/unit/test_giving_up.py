"""Which runs can be given up, and what is said of it."""

import pytest

from services.api.run_queries import RUN_STATES
from services.core.giving_up import outcome, outcome_of_all, why_not


def test_only_a_failed_run_can_be_given_up_and_once_more_changes_nothing() -> None:
    assert [state for state in RUN_STATES if why_not(state) is None] == ["failed", "given_up"]
    assert outcome("failed") == "the run is given up"
    assert outcome("given_up") == "the run had been given up before"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("planned", "waits to be sent"),
        ("frozen", "is being sent, or waits to be"),
        ("delivered", "was delivered"),
        ("empty", "had no rows"),
        ("skipped", "was skipped by a pause"),
    ],
)
def test_any_other_run_is_refused_with_its_reason(state: str, words: str) -> None:
    assert why_not(state) == f"{words}, so it cannot be given up: only a run that failed can"
    assert outcome(state) == f"the run {why_not(state)}"


def test_what_is_said_of_no_run_and_of_many() -> None:
    assert outcome(None) == "there is no such run"
    assert outcome_of_all(1_200) == "1,200 runs are given up"
    assert outcome_of_all(1) == "1 run is given up"
    assert outcome_of_all(0) == "no run is given up: none of that time is failed"
