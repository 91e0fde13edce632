"""From the bytes of one record to the readings to store and the readings to refuse. Pure.

Every reading of a record ends as exactly one of the two, so that per partition
readings consumed = versions stored + refused, always.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from services.core.messages import RawUpload, ReadingUpload, WireReading
from services.core.readings import (
    FUTURE_TOLERANCE,
    INTERVALS_MINUTES,
    MAX_INT32,
    MAX_RECORD_BYTES,
    MAX_RECORD_READINGS,
    MAX_VALUE,
    WHOLE_RECORD,
    ReadingVersion,
    Refusal,
    RefusalReason,
)
from services.core.registry import Registry
from services.core.times import EPOCH

_UPLOAD = msgspec.json.Decoder(ReadingUpload)
_RAW_UPLOAD = msgspec.json.Decoder(RawUpload)
_READING = msgspec.json.Decoder(WireReading)
_INTERVALS = {minutes: timedelta(minutes=minutes) for minutes in INTERVALS_MINUTES}
_REGISTRY_REASONS = {
    RefusalReason.UNKNOWN_DEVICE: "no such device is registered",
    RefusalReason.UNKNOWN_INPUT: "this input of the device has never had a meter",
    RefusalReason.UNKNOWN_METER: "no such meter is registered",
    RefusalReason.NOT_ATTACHED: "the meter and the device did not belong together at that time",
}


class Origin(NamedTuple):
    """Where a record stands in the log, and when it arrived (monotone within its partition)."""

    source_topic: int
    partition: int
    offset: int
    arrived_at: datetime


class JudgedUpload(NamedTuple):
    """What becomes of one record."""

    versions: list[ReadingVersion]
    refusals: list[Refusal]


class _Unfit(Exception):  # noqa: N818 - a verdict that travels up a few lines, not an error
    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def judge_upload(payload: bytes, origin: Origin, registry: Registry, raw_retention: timedelta) -> JudgedUpload:
    """Decide for every reading of a record whether it is stored or refused, and why.

    `raw_retention` is how far before its arrival a reading may have been measured.
    """
    if len(payload) > MAX_RECORD_BYTES:
        detail = f"the record has {len(payload):,} bytes, {MAX_RECORD_BYTES:,} are allowed"
        return _refuse_record(payload, None, RefusalReason.TOO_LARGE, detail)
    try:
        upload = _UPLOAD.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _judge_one_by_one(payload, origin, registry, raw_retention)
    return _judge_readings(payload, upload.device_id, upload.readings, origin, registry, raw_retention)


def _judge_one_by_one(payload: bytes, origin: Origin, registry: Registry, raw_retention: timedelta) -> JudgedUpload:
    """Separate the readings that break the schema from their sound neighbours."""
    try:
        raw = _RAW_UPLOAD.decode(payload)
    except msgspec.ValidationError as error:
        return _refuse_record(payload, None, RefusalReason.SCHEMA_VIOLATION, str(error))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return _refuse_record(payload, None, RefusalReason.MALFORMED, f"not JSON: {error}")
    readings: list[WireReading | _Unfit] = []
    for item in raw.readings:
        try:
            readings.append(_READING.decode(item))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            readings.append(_Unfit(RefusalReason.SCHEMA_VIOLATION, str(error)))
    return _judge_readings(payload, raw.device_id, readings, origin, registry, raw_retention)


def _judge_readings(
    payload: bytes,
    device_id: str,
    readings: list[WireReading] | list[WireReading | _Unfit],
    origin: Origin,
    registry: Registry,
    raw_retention: timedelta,
) -> JudgedUpload:
    if len(readings) > MAX_RECORD_READINGS:
        detail = f"the record has {len(readings):,} readings, {MAX_RECORD_READINGS:,} are allowed"
        return _refuse_record(payload, device_id, RefusalReason.TOO_LARGE, detail)
    latest = origin.arrived_at + FUTURE_TOLERANCE
    earliest = origin.arrived_at - raw_retention
    versions: list[ReadingVersion] = []
    refusals: list[Refusal] = []
    raw: RawUpload | None = None
    for place, reading in enumerate(readings):
        try:
            if isinstance(reading, _Unfit):
                raise reading
            versions.append(_judge(reading, place, device_id, origin, registry, earliest, latest))
        except _Unfit as unfit:
            raw = raw or _RAW_UPLOAD.decode(payload)
            original = bytes(raw.readings[place])
            refusals.append(Refusal(place, unfit.reason, unfit.detail, device_id, original))
    return JudgedUpload(versions, refusals)


def _judge(
    reading: WireReading,
    place: int,
    device_id: str,
    origin: Origin,
    registry: Registry,
    earliest: datetime,
    latest: datetime,
) -> ReadingVersion:
    """Return the version to store; raises _Unfit with the reason otherwise."""
    if (reading.input is UNSET) == (reading.meter_id is UNSET):
        raise _Unfit(RefusalReason.SCHEMA_VIOLATION, "exactly one of input and meter_id must be given")
    if (reading.pulses is UNSET) == (reading.register is UNSET):
        raise _Unfit(RefusalReason.SCHEMA_VIOLATION, "exactly one of pulses and register must be given")
    value = reading.pulses if reading.register is UNSET else reading.register
    if not isinstance(value, int):
        raise _Unfit(RefusalReason.SCHEMA_VIOLATION, "the value is no integer")
    _check_value(value, reading.revision)
    measured_at = reading.measurement_time
    interval = _INTERVALS.get(reading.interval_minutes)
    if interval is None:
        allowed = ", ".join(map(str, INTERVALS_MINUTES))
        raise _Unfit(RefusalReason.BAD_INTERVAL, f"interval_minutes is {reading.interval_minutes}, allowed: {allowed}")
    if (measured_at - EPOCH) % interval:
        detail = f"{measured_at.isoformat()} is no multiple of {reading.interval_minutes} minutes"
        raise _Unfit(RefusalReason.UNALIGNED_TIME, detail)
    if measured_at > latest:
        raise _Unfit(RefusalReason.IN_FUTURE, _times_apart(measured_at, origin))
    if measured_at < earliest:
        raise _Unfit(RefusalReason.TOO_OLD, _times_apart(measured_at, origin))
    return ReadingVersion(
        measured_at,
        origin.arrived_at,
        value,
        origin.offset,
        _find_meter(reading, device_id, measured_at, registry),
        reading.revision,
        origin.partition,
        place,
        reading.interval_minutes,
        origin.source_topic,
        reading.register is not UNSET,
    )


def _times_apart(measured_at: datetime, origin: Origin) -> str:
    # As it was sent: at the ends of the calendar a time of another zone has no equal in UTC.
    return f"starts at {measured_at.isoformat()}, but arrived at {origin.arrived_at.isoformat()}"


def _check_value(value: int, revision: int) -> None:
    if value < 0:
        raise _Unfit(RefusalReason.NEGATIVE_VALUE, f"the value is {value}")
    if value > MAX_VALUE:
        raise _Unfit(RefusalReason.VALUE_OUT_OF_RANGE, f"the value is above {MAX_VALUE}")
    if not 0 <= revision <= MAX_INT32:
        raise _Unfit(RefusalReason.VALUE_OUT_OF_RANGE, f"revision must lie between 0 and {MAX_INT32}")


def _find_meter(reading: WireReading, device_id: str, measured_at: datetime, registry: Registry) -> int:
    if isinstance(reading.input, int):
        found = registry.meter_of_input(device_id, reading.input, measured_at)
        name = f"input {reading.input}"
    else:
        assert isinstance(reading.meter_id, int)  # noqa: S101 - exactly one is given, see _judge
        found = registry.meter_of_bridge(device_id, reading.meter_id, measured_at)
        name = f"meter {reading.meter_id}"
    if isinstance(found, RefusalReason):
        raise _Unfit(found, f"device {device_id}, {name}: {_REGISTRY_REASONS[found]}")
    return found


def _refuse_record(payload: bytes, device_id: str | None, reason: RefusalReason, detail: str) -> JudgedUpload:
    return JudgedUpload([], [Refusal(WHOLE_RECORD, reason, detail, device_id, payload)])
