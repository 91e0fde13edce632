"""The messages on Kafka, as frozen structs held equal to the JSON Schemas in `schemas/messages` by a test.

Unknown fields are ignored everywhere, so a newer writer does not break an older reader.
"""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

AwareTime = Annotated[datetime, Meta(tz=True)]


class WireReading(Struct, frozen=True, gc=False):
    """One reading as a device sends it. The rules between fields are judged in `services.core.uploads`."""

    measurement_time: AwareTime
    interval_minutes: int
    input: int | UnsetType = UNSET
    meter_id: int | UnsetType = UNSET
    pulses: int | UnsetType = UNSET
    register: int | UnsetType = UNSET
    revision: int = 0


class ReadingUpload(Struct, frozen=True):
    """One record on readings.logger or readings.bridge."""

    device_id: Annotated[str, Meta(min_length=1, max_length=100)]
    sent_at: AwareTime
    readings: list[WireReading]


class RawUpload(Struct, frozen=True):
    """The same record with its readings left undecoded, to find the one that is wrong and keep its bytes."""

    device_id: Annotated[str, Meta(min_length=1, max_length=100)]
    sent_at: AwareTime
    readings: list[msgspec.Raw]


class IngestProgress(Struct, frozen=True):
    """A doorbell for windowing: a partition was stored up to here."""

    topic: str
    partition: int
    next_offset: int
    watermark: AwareTime


class WindowsDue(Struct, frozen=True):
    """Windows of one bucket that start before `due_until` can be closed."""

    resolution_minutes: int
    bucket: int
    due_until: AwareTime


class WindowsClosed(Struct, frozen=True):
    """A doorbell for delivery: windows of the resolution that start before `closed_until` are closed."""

    resolution_minutes: int
    closed_until: AwareTime


def encode(message: Struct) -> bytes:
    """Return a message as compact JSON."""
    return msgspec.json.encode(message)
