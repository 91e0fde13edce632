"""Instants on a grid: everything here is aware UTC and exact (integers of microseconds, no floats)."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MILLISECOND = timedelta(milliseconds=1)


def floor_to(instant: datetime, step: timedelta) -> datetime:
    """Return the latest multiple of `step` since the epoch that is not after `instant`."""
    return instant - (instant - EPOCH) % step


def ceil_to(instant: datetime, step: timedelta) -> datetime:
    """Return the earliest multiple of `step` since the epoch that is not before `instant`."""
    return instant + (EPOCH - instant) % step


def from_epoch_milliseconds(milliseconds: int) -> datetime:
    """Return the instant that Kafka writes as `milliseconds` since the epoch."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_epoch_milliseconds(instant: datetime) -> int:
    """Return `instant` as Kafka writes it; fractions of a millisecond are cut off."""
    return (instant - EPOCH) // MILLISECOND


def to_epoch_microseconds(instant: datetime) -> int:
    """Return `instant` in microseconds since the epoch, exact."""
    return (instant - EPOCH) // MICROSECOND


def from_epoch_microseconds(microseconds: int) -> datetime:
    """Return the instant that is `microseconds` after the epoch."""
    return EPOCH + timedelta(microseconds=microseconds)


def iso_seconds(instant: datetime) -> str:
    """Return `YYYY-MM-DDTHH:MM:SSZ`, the one time format of the exports."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(text: str) -> datetime:
    """Return the instant that an ISO 8601 `text` names.

    Raises ValueError, with a sentence for people, where `text` is no time or leaves the zone open.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO 8601 time such as 2026-11-20T10:00:00Z") from None
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone; end it with Z for UTC")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} lies in no year from 1 to 9999, by UTC") from None
