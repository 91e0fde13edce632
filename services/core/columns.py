"""Judging uploads by the column: the same verdicts as `services.core.uploads`, ten times as fast.

A record that is plain in every respect (which nearly all are) is decoded into flat lists, and its rules are checked on
arrays of many records at once. Whatever is unusual in the least is judged by `judge_upload`, reading by reading: that
module alone decides what is refused and why. A property test holds the two equal.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from services.core.messages import AwareTime
from services.core.readings import (
    FUTURE_TOLERANCE,
    INTERVALS_MINUTES,
    MAX_INT32,
    MAX_RECORD_BYTES,
    MAX_RECORD_READINGS,
    MAX_VALUE,
    ReadingVersion,
    Refusal,
)
from services.core.registry import QuickDevice, Registry
from services.core.times import MICROSECOND, to_epoch_microseconds
from services.core.uploads import Origin, judge_upload
from services.core.windows import RESOLUTIONS_MINUTES

Int64s = npt.NDArray[np.int64]
_ABSENT = -1
_NO_METER = 0
_NO_TIME = -(2**62)
_MINUTE_US = 60_000_000
_PLAIN_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_MAX_KNOWN_TIMES = 100_000

_Count = Annotated[int, Meta(ge=0, le=MAX_VALUE)]
_Small = Annotated[int, Meta(ge=0, le=MAX_INT32)]


class _PlainReading(Struct, frozen=True, gc=False):
    measurement_time: str
    interval_minutes: _Small
    input: _Small = _ABSENT
    meter_id: _Small = _ABSENT
    pulses: _Count = _ABSENT
    register: _Count = _ABSENT
    revision: _Small = 0


class _PlainUpload(Struct, frozen=True, gc=False):
    device_id: Annotated[str, Meta(min_length=1, max_length=100)]
    sent_at: AwareTime
    readings: list[_PlainReading]


_PLAIN_UPLOAD = msgspec.json.Decoder(_PlainUpload)


@dataclass(frozen=True, slots=True)
class Columns:
    """Versions of readings as arrays of one length; times in microseconds since the epoch."""

    measured_us: Int64s
    arrived_us: Int64s
    value: Int64s
    source_offset: Int64s
    meter_id: Int64s
    revision: Int64s
    source_partition: Int64s
    source_place: Int64s
    interval_minutes: Int64s
    source_topic: Int64s
    is_register: Int64s

    def __len__(self) -> int:
        """Return the number of versions."""
        return len(self.measured_us)

    def arrays(self) -> tuple[Int64s, ...]:
        """Return the arrays in the order of the fields, which is that of ReadingVersion."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> "Columns":
        """Return the chosen rows, by mask, by place or by slice."""
        return Columns(*(array[chosen] for array in self.arrays()))

    @classmethod
    def of_versions(cls, versions: Sequence[ReadingVersion]) -> "Columns":
        """Return versions as columns."""
        rows = [
            (to_epoch_microseconds(version.measured_at), to_epoch_microseconds(version.arrived_at), *version[2:])
            for version in versions
        ]
        table = np.array(rows, dtype=np.int64).reshape(len(rows), len(ReadingVersion._fields))
        return cls(*table.T)

    @classmethod
    def joined(cls, parts: Sequence["Columns"]) -> "Columns":
        """Return the rows of several columns, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.of_versions([])
        return cls(*(np.concatenate(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))


class JudgedColumns(NamedTuple):
    """What becomes of many records of one partition."""

    versions: Columns
    refusals: list[tuple[Origin, Refusal]]


class PlainTimes:
    """Times in their plain form, each parsed once: thousands of readings share the few of their minute."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def learn(self, text: str) -> int:
        """Return microseconds since the epoch for a time of the form YYYY-MM-DDTHH:MM:SSZ, else _NO_TIME."""
        known = self.known.get(text)
        if known is not None:
            return known
        if not _PLAIN_TIME.fullmatch(text):
            return _NO_TIME
        try:
            parsed = to_epoch_microseconds(datetime.fromisoformat(text))
        except ValueError:
            return _NO_TIME
        if len(self.known) >= _MAX_KNOWN_TIMES:
            self.known.clear()
        self.known[text] = parsed
        return parsed


def _is_plainly_written(payload: bytes, reading_count: int) -> bool:
    """Tell whether each reading has one time: of a repeated field only the last is seen here, not that one was bad.

    Other fields need no such care, because they are decoded at least as strictly as by `judge_upload`.
    """
    return (
        reading_count <= MAX_RECORD_READINGS
        and payload.count(b"measurement_time") == reading_count
        and b"\\" not in payload
    )


class ColumnJudge:
    """Judges the records of one partition; `finish` returns the verdicts and begins anew."""

    def __init__(self, registry: Registry, raw_retention: timedelta, times: PlainTimes) -> None:
        self._registry = registry
        self._raw_retention = raw_retention
        self._times = times
        self._unusual: list[tuple[bytes, Origin]] = []
        self._begin()

    def _begin(self) -> None:
        self._plain: list[tuple[bytes, Origin]] = []
        self._readings: list[_PlainReading] = []
        self._meter_ids: list[int] = []
        # Of each plain record.
        self._counts: list[int] = []
        self._since: list[int] = []
        self._arrivals: list[int] = []
        self._arrived_at: datetime | None = None
        self._arrived_us = 0

    def add(self, payload: bytes, origin: Origin) -> None:
        """Take one record."""
        if len(payload) <= MAX_RECORD_BYTES:
            try:
                upload = _PLAIN_UPLOAD.decode(payload)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass
            else:
                device = self._registry.quick(upload.device_id)
                if device is not None and _is_plainly_written(payload, len(upload.readings)):
                    self._add_plain(payload, origin, upload.readings, device)
                    return
        self._unusual.append((payload, origin))

    def _add_plain(self, payload: bytes, origin: Origin, readings: list[_PlainReading], device: QuickDevice) -> None:
        if origin.arrived_at is not self._arrived_at:  # many records share the instant, and the object
            self._arrived_at, self._arrived_us = origin.arrived_at, to_epoch_microseconds(origin.arrived_at)
        inputs, meters = device.inputs, device.meters
        self._meter_ids += [
            inputs.get(r.input, _NO_METER)
            if r.meter_id < 0
            else (meters.get(r.meter_id, _NO_METER) if r.input < 0 else _NO_METER)
            for r in readings
        ]
        self._readings += readings
        self._plain.append((payload, origin))
        self._counts.append(len(readings))
        self._since.append(device.since_us)
        self._arrivals.append(self._arrived_us)

    def finish(self) -> JudgedColumns:
        """Return the verdicts on everything taken since the last call."""
        parts: list[Columns] = []
        if self._plain:
            columns, is_sound = self._check()
            parts.append(columns.take(is_sound) if not is_sound.all() else columns)
        versions: list[ReadingVersion] = []
        refusals: list[tuple[Origin, Refusal]] = []
        for payload, origin in self._unusual:
            judged = judge_upload(payload, origin, self._registry, self._raw_retention)
            versions += judged.versions
            refusals += [(origin, refusal) for refusal in judged.refusals]
        if versions:
            parts.append(Columns.of_versions(versions))
        self._unusual = []
        self._begin()
        return JudgedColumns(Columns.joined(parts), refusals)

    def _check(self) -> tuple[Columns, npt.NDArray[np.bool_]]:
        """Build the columns of the plain records; records with anything to object to are judged one by one instead."""
        counts = np.array(self._counts, dtype=np.int64)
        origin = self._plain[0][1]
        measured, value, is_register, interval, revision = self._fields()
        meter_id = np.array(self._meter_ids, dtype=np.int64)
        ends = np.cumsum(counts)
        place = np.arange(len(measured), dtype=np.int64) - np.repeat(ends - counts, counts)
        arrived = np.repeat(np.array(self._arrivals, dtype=np.int64), counts)
        is_sound = (meter_id != _NO_METER) & (value >= 0) & np.isin(interval, INTERVALS_MINUTES)
        is_sound &= measured % (np.maximum(interval, 1) * _MINUTE_US) == 0
        is_sound &= measured <= arrived + FUTURE_TOLERANCE // MICROSECOND
        is_sound &= measured >= arrived - self._raw_retention // MICROSECOND
        is_sound &= measured >= np.repeat(np.array(self._since, dtype=np.int64), counts)
        columns = Columns(
            measured,
            arrived,
            value,
            np.repeat(np.array([origin.offset for _payload, origin in self._plain], dtype=np.int64), counts),
            meter_id,
            revision,
            np.full(len(measured), origin.partition, dtype=np.int64),
            place,
            interval,
            np.full(len(measured), origin.source_topic, dtype=np.int64),
            is_register,
        )
        if not is_sound.all():
            record_of = np.repeat(np.arange(len(counts)), counts)
            doubted = np.unique(record_of[~is_sound])
            self._unusual += [self._plain[number] for number in doubted]
            is_sound &= ~np.isin(record_of, doubted)
        return columns, is_sound

    def _fields(self) -> tuple[Int64s, ...]:
        """Return time, value, whether it is a register's, interval and revision of the plain readings."""
        readings = self._readings
        known, learn = self._times.known, self._times.learn
        columns = (
            [known.get(r.measurement_time) or learn(r.measurement_time) for r in readings],
            [r.pulses if r.register < 0 else (r.register if r.pulses < 0 else _ABSENT) for r in readings],
            [r.register >= 0 for r in readings],
            [r.interval_minutes for r in readings],
            [r.revision for r in readings],
        )
        return tuple(np.array(column, dtype=np.int64) for column in columns)


def late_counts(columns: Columns, grace_seconds: int) -> dict[int, int]:
    """Return how many versions arrived after the cut-off of their window, by the window's resolution in minutes."""
    counts = {}
    for resolution in RESOLUTIONS_MINUTES:
        step_us = resolution * _MINUTE_US
        cut_off_us = columns.measured_us // step_us * step_us + step_us + grace_seconds * 1_000_000
        late = (columns.arrived_us > cut_off_us) & (columns.interval_minutes <= resolution)
        counts[resolution] = int(np.count_nonzero(late))
    return counts
