"""From refused readings to the records that bring them again, as new arrivals. Pure.

A reading that was refused alone is wrapped into an upload of its device, together with the others of its record; a
record that was refused as a whole goes out byte for byte.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

import msgspec

from services.core.messages import RawUpload, encode
from services.core.readings import WHOLE_RECORD, SourceTopic
from services.core.registry import Registry
from services.core.uploads import JudgedUpload, Origin, judge_upload
from services.ingest.rejected_queries import Original, Rejected


class Resend(NamedTuple):
    """A record to publish to the partition that its readings came from."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    rejected: list[Rejected]


def resends_of(originals: Sequence[Original], sent_at: datetime) -> list[Resend]:
    """Return the records that bring refused readings again; `originals` are in the order of the log."""
    return [_resend(list(group), sent_at) for _record, group in groupby(originals, key=lambda one: one.rejected[:3])]


def _resend(originals: list[Original], sent_at: datetime) -> Resend:
    first = originals[0].rejected
    key = None if first.device_id is None else first.device_id.encode()
    value = originals[0].original
    if first.source_place != WHOLE_RECORD:
        # A reading is only ever judged alone where its record names a device.
        readings = [msgspec.Raw(one.original) for one in originals]
        value = encode(RawUpload(first.device_id or "", sent_at, readings))
    return Resend(first.topic, first.partition, key, value, [one.rejected for one in originals])


def judge_resend(
    resend: Resend, source_topic: SourceTopic, arrives_at: datetime, registry: Registry, raw_retention: timedelta
) -> JudgedUpload:
    """Tell what ingest would make of the record, if it arrived at `arrives_at`."""
    return judge_upload(resend.value, Origin(source_topic, resend.partition, 0, arrives_at), registry, raw_retention)
