"""What a reading is: its versions and their total order, its limits, and the reasons to refuse one."""

from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import NamedTuple

INTERVALS_MINUTES = (1, 5, 15, 30, 60)
MAX_RECORD_BYTES = 1_000_000
MAX_RECORD_READINGS = 1_000
MAX_VALUE = 10**15
"""Largest count of pulses and largest register: sums of any window stay far inside 64 bits."""
MAX_INT32 = 2**31 - 1
FUTURE_TOLERANCE = timedelta(minutes=5)
WHOLE_RECORD = -1
"""The place of a refusal that concerns a record as a whole."""


class SourceTopic(IntEnum):
    """Where a reading came from; the numbers follow the lexicographic order of the topics' names."""

    BRIDGE = 0
    LOGGER = 1


class RefusalReason(StrEnum):
    """Why a reading, or a whole record, is not stored. Stable: operators filter and alert on these."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    SCHEMA_VIOLATION = "schema_violation"
    UNKNOWN_DEVICE = "unknown_device"
    UNKNOWN_INPUT = "unknown_input"
    UNKNOWN_METER = "unknown_meter"
    NOT_ATTACHED = "not_attached"
    UNALIGNED_TIME = "unaligned_time"
    BAD_INTERVAL = "bad_interval"
    NEGATIVE_VALUE = "negative_value"
    VALUE_OUT_OF_RANGE = "value_out_of_range"
    IN_FUTURE = "in_future"
    TOO_OLD = "too_old"


class Refusal(NamedTuple):
    """A reading that is not stored, with everything needed to explain and to replay it."""

    place: int
    reason: RefusalReason
    detail: str
    device_id: str | None
    original: bytes


class ReadingVersion(NamedTuple):
    """One version of a reading, in the column order of the tables `reading` and `reading_superseded`."""

    measured_at: datetime
    arrived_at: datetime
    value: int
    source_offset: int
    meter_id: int
    revision: int
    source_partition: int
    source_place: int
    interval_minutes: int
    source_topic: int
    is_register: bool

    @property
    def order(self) -> tuple[int, datetime, int, int, int, int]:
        """The version's place in the total order of the versions of one (meter, measured_at)."""
        return (
            self.revision,
            self.arrived_at,
            self.source_topic,
            self.source_partition,
            self.source_offset,
            self.source_place,
        )


def newest(versions: list[ReadingVersion], as_of: datetime | None = None) -> ReadingVersion | None:
    """Return the newest of the versions that arrived at `as_of` at the latest (None: of all)."""
    known = [version for version in versions if as_of is None or version.arrived_at <= as_of]
    return max(known, key=lambda version: version.order, default=None)
