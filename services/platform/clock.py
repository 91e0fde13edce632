"""The wall clock, for retries, leases and tokens only: readings are judged by their arrival."""

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time; injected, so that a test can turn it."""

    def now(self) -> datetime:
        """Return the present instant, aware UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the present instant, aware UTC."""
        return datetime.now(UTC)  # noqa: TID251 - the one place
