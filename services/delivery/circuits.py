"""Destinations that fail again and again are tried by one job at a time, until they answer.

Kept in memory by each process: what is forgotten at a restart is learnt anew after a few attempts, and only decides how
many connections a dead server is worth.
"""

from collections import Counter

from services.core.retry import Verdict

FAILURES_BEFORE = 5


class Circuits:
    """Counts failures in a row by destination (`host:port`)."""

    def __init__(self, failures_before: int = FAILURES_BEFORE) -> None:
        self._failures_before = failures_before
        self._failed: Counter[str] = Counter()

    def note(self, destination: str, verdict: Verdict) -> None:
        """Take note of an attempt. A refusal is an answer, too: the server is there."""
        if verdict is Verdict.RETRY:
            self._failed[destination] += 1
        else:
            self._failed.pop(destination, None)

    def at_once(self, destination: str, usually: int) -> int:
        """Return how many jobs may send to the destination at a time."""
        return 1 if self._failed[destination] >= self._failures_before else usually
