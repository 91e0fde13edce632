"""Giving up a failed run: nobody wants it any more, so it is not sent and its rows are kept for it no longer. Pure."""

FAILED = "failed"
GIVEN_UP = "given_up"

_NOT_FAILED = {
    "planned": "waits to be sent",
    "frozen": "is being sent, or waits to be",
    "delivered": "was delivered",
    "empty": "had no rows",
    "skipped": "was skipped by a pause",
}


def why_not(state: str) -> str | None:
    """Return why a run in this state cannot be given up; None: it can, or it was, and once more changes nothing."""
    if state in {FAILED, GIVEN_UP}:
        return None
    return f"{_NOT_FAILED.get(state, f'is {state}')}, so it cannot be given up: only a run that failed can"


def outcome(state: str | None) -> str:
    """Return what comes of giving up a run in this state; None: there is none."""
    if state is None:
        return "there is no such run"
    if state == GIVEN_UP:
        return "the run had been given up before"
    refusal = why_not(state)
    return "the run is given up" if refusal is None else f"the run {refusal}"


def outcome_of_all(count: int) -> str:
    """Return what comes of giving up all failed runs of a time, of which there were `count`."""
    if count == 0:
        return "no run is given up: none of that time is failed"
    return "1 run is given up" if count == 1 else f"{count:,} runs are given up"
