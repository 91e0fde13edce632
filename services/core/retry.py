"""What to do after an attempt: a decision, not a sleep."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What a transport says of one attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    STOP = "stop"
    """Trying again is useless until a person changes something (authentication, certificate, 410, a 4xx)."""


class Answer(NamedTuple):
    """The result of one attempt to deliver a part."""

    verdict: Verdict
    reason: str
    """Stable code: http_200, http_503, connection_refused, timeout, certificate_refused …"""
    detail: str
    """For people: what the receiver answered, or what to do."""
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential delays with jitter, between `first` and `longest`."""

    first: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(hours=1)
    longest_asked: timedelta = timedelta(days=1)
    """Up to which a receiver's Retry-After is honoured: below the time after which a run has failed."""

    def delay(self, failed_attempts: int, jitter: float, retry_after: timedelta | None = None) -> timedelta:
        """Return how long to wait after the `failed_attempts`-th failure in a row (from 1).

        `jitter` in [0, 1) takes off up to a half, so that many parts that failed together do not return together.
        The receiver's Retry-After is a lower bound, up to `longest_asked`.
        """
        doublings = min(failed_attempts - 1, 40)
        delay = min(self.longest, self.first * (1 << doublings)) * (1 - jitter / 2)
        return max(delay, min(retry_after, self.longest_asked)) if retry_after is not None else delay
