"""Destinations that fail again and again are tried by one job at a time, until they answer.

Kept in memory by each process: what is forgotten at a restart is learnt anew after a few attempts, and only decides how
many connections a dead server is worth.
"""

from collections import Counter
from typing import NamedTuple

from services.core.retry import Answer, Verdict

FAILURES_BEFORE = 5
# The server was not reached, so nobody's part would be: what is said after that is about the one account.
UNREACHED = frozenset({"connection_refused", "connect_timeout", "name_not_resolved", "tls_failed"})


class Account(NamedTuple):
    """What one organization sends to one address (`host:port`): its quota and its limits are its own."""

    organization_id: int
    address: str


class Circuits:
    """Counts failures in a row by account, and by address those of connecting."""

    def __init__(self, failures_before: int = FAILURES_BEFORE) -> None:
        self._failures_before = failures_before
        self._failed: Counter[Account] = Counter()
        self._unreached: Counter[str] = Counter()

    def note(self, account: Account, answer: Answer) -> None:
        """Take note of an attempt. A refusal is an answer, too: the server is there."""
        if answer.verdict is Verdict.RETRY:
            self._failed[account] += 1
        else:
            self._failed.pop(account, None)
        if answer.verdict is Verdict.RETRY and answer.reason in UNREACHED:
            self._unreached[account.address] += 1
        else:
            self._unreached.pop(account.address, None)

    def is_account_open(self, account: Account) -> bool:
        """Tell whether the account failed so often that one job at a time is enough."""
        return self._failed[account] >= self._failures_before

    def is_address_open(self, address: str) -> bool:
        """Tell whether the address could not be reached so often that one job at a time is enough, whoever's."""
        return self._unreached[address] >= self._failures_before
