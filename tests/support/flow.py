"""A made-up fleet's uploads, in time and late, corrected and doubled, good and bad, and what must come of them.

The model knows the contract alone (tests.support.closing): nothing of it is read back from the product.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

from services.core.conversion import Conversion, hourly_rate, two_decimals
from services.core.readings import ReadingVersion
from services.core.windows import DEFAULT_GRACE
from services.platform.topics import READINGS_BRIDGE, READINGS_LOGGER
from tests.support.closing import MINUTE, T0, UTILITIES, Row, expected_rows, version
from tests.support.seed import metered, pulses, upload

INPUTS_PER_LOGGER = 4
BRIDGE = "BR-1"
BAD_EVERY_MINUTES = 30
RESOLUTIONS = (1, 5, 15, 60)
MAX_ROWS_IN_PART = 2_000


class FlowJob(NamedTuple):
    """An export job of the flow."""

    job_id: int
    name: str
    frequency_minutes: int
    resolution_minutes: int


class Upload(NamedTuple):
    """One record, the readings in it that must be stored, and why the others are refused."""

    arrives_at: datetime
    topic: str
    device_id: str
    value: bytes
    versions: Sequence[ReadingVersion]
    refused: Sequence[str] = ()


class Part(NamedTuple):
    """A part as it must arrive."""

    part_id: str
    """Without the installation's id, which stands before it."""
    file: str
    """Its path in the receiver's folder."""
    content: bytes


@dataclass(frozen=True)
class Flow:
    """Meters 1 … `meters` over `minutes` minutes from T0. Three of four hang on loggers; a bridge reports the rest.

    The bridge reports the first four, too: these come through both topics.
    """

    meters: int
    minutes: int
    jobs: Sequence[FlowJob] = field(default=())

    @cached_property
    def conversions(self) -> dict[int, Conversion]:
        """How the pulses of each meter count: the five utilities in turn."""
        return {meter: UTILITIES[(meter - 1) % len(UTILITIES) + 1] for meter in self.all_meters}

    @property
    def all_meters(self) -> range:
        return range(1, self.meters + 1)

    @property
    def on_loggers(self) -> range:
        return range(1, self.meters * 3 // 4 + 1)

    @property
    def on_bridge(self) -> list[int]:
        return [*range(1, 5), *range(self.meters * 3 // 4 + 1, self.meters + 1)]

    @property
    def ends_at(self) -> datetime:
        """The arrival at which every window of the flow is closed."""
        return T0 + self.minutes * MINUTE + DEFAULT_GRACE + timedelta(seconds=1)

    @cached_property
    def uploads(self) -> list[Upload]:
        """Everything that is sent, in the order of arrival."""
        rng = random.Random(20261120)
        made = [upload for minute in range(self.minutes) for upload in self._of_minute(rng, minute)]
        return sorted((one for one in made if one.arrives_at <= self.ends_at), key=lambda one: one.arrives_at)

    @cached_property
    def _rows(self) -> dict[int, list[Row]]:
        # The order of uploads is the order of offsets, wherever two of them may compete within one partition.
        versions = [
            item._replace(source_offset=offset)
            for offset, upload in enumerate(self.uploads)
            for item in upload.versions
        ]
        return {
            resolution: expected_rows(versions, resolution, DEFAULT_GRACE, self.conversions, 1)
            for resolution in RESOLUTIONS
        }

    def rows(self, resolution_minutes: int) -> list[Row]:
        """Return the measurements that all windows of a resolution must have."""
        return self._rows[resolution_minutes]

    def refused(self, clock: datetime) -> list[str]:
        """Return the reasons of everything that must have been refused up to this arrival, sorted."""
        return sorted(reason for one in self.uploads if one.arrives_at <= clock for reason in one.refused)

    @cached_property
    def _parts(self) -> list[tuple[datetime, Part]]:
        """Every part with the arrival that must have been passed for it to be sent; in order within each job."""
        found = []
        for job in self.jobs:
            slots: dict[datetime, list[Row]] = defaultdict(list)
            length = timedelta(minutes=job.frequency_minutes)
            for row in self.rows(job.resolution_minutes):
                slots[T0 + (row.window_start - T0) // length * length].append(row)
            for start in sorted(slots):
                ends_at = start + length
                parts = [
                    slots[start][at : at + MAX_ROWS_IN_PART] for at in range(0, len(slots[start]), MAX_ROWS_IN_PART)
                ]
                for number, rows in enumerate(parts, start=1):
                    name = f"{job.job_id}-{job.name}_meters_measurements_{_compact(start)}_{_compact(ends_at)}"
                    part = Part(
                        f"job{job.job_id}-{_compact(start)}-part{number}",
                        f"{job.job_id}/{name}_{number}of{len(parts)}.json",
                        self._render(rows),
                    )
                    found.append((ends_at + DEFAULT_GRACE, part))
        return found

    def parts(self, clock: datetime) -> list[Part]:
        """Return the parts that must have been sent when the arrival clock stands at `clock`."""
        return [part for cut_off, part in self._parts if cut_off < clock]

    def _render(self, rows: Sequence[Row]) -> bytes:
        body = {"measurements": [self._record(row) for row in rows]}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

    def _record(self, row: Row) -> dict[str, Any]:
        utility = self.conversions[row.meter_id].utility
        energy, volume = row.energy_wh, row.volume
        return {
            "METER_ID": row.meter_id,
            "METER_TYPE": utility.value,
            "METER_NAME": "Meter",
            "METER_UNIT": utility.units[0],
            "MEASUREMENT_TIME(UTC)": f"{row.window_start:%Y-%m-%dT%H:%M:%SZ}",
            "RESOLUTION(min)": row.resolution_minutes,
            "SITE_ID": 1,
            "SITE_NAME": "North depot",
            "POWER(W)": _rate(energy, row.resolution_minutes),
            "ENERGY(Wh)": _amount(energy),
            "FLOW": _rate(volume, row.resolution_minutes),
            "VOLUME": _amount(volume),
        }

    def _of_minute(self, rng: random.Random, minute: int) -> Iterator[Upload]:
        measured_at = T0 + minute * MINUTE
        for first in range(1, len(self.on_loggers) + 1, INPUTS_PER_LOGGER):
            meters = range(first, min(first + INPUTS_PER_LOGGER, len(self.on_loggers) + 1))
            yield from self._of_device(rng, f"LG-{first // INPUTS_PER_LOGGER}", list(meters), measured_at)
        yield from self._of_device(rng, BRIDGE, self.on_bridge, measured_at)
        if minute % BAD_EVERY_MINUTES == BAD_EVERY_MINUTES // 3:
            yield from self._bad(measured_at)

    def _of_device(self, rng: random.Random, device: str, meters: list[int], measured_at: datetime) -> Iterator[Upload]:
        present = [meter for meter in meters if rng.random() > 0.01]
        values = {meter: rng.randrange(100) for meter in present}
        end = measured_at + MINUTE
        arrives_at = end + timedelta(milliseconds=1000 * rng.choice([5, 5, 10, 20, 40]))
        kind = rng.random()
        if kind < 0.03:  # too late for its minute, in time for longer windows; at the cut-off, and just after it
            arrives_at = end + DEFAULT_GRACE + timedelta(milliseconds=rng.choice([0, 1, 1_000, 240_000]))
        elif kind < 0.04:  # too late for any
            arrives_at = end + timedelta(minutes=70)
        yield self._upload(device, arrives_at, measured_at, values, 0)
        if rng.random() < 0.05:  # a device that repeats itself
            yield self._upload(device, arrives_at + timedelta(seconds=rng.choice([0, 3])), measured_at, values, 0)
        if present and rng.random() < 0.15:
            after_s = rng.choice([30, 60, 200, 290, 400, 1_000, 4_500])
            corrected = {meter: rng.randrange(100, 200) for meter in rng.sample(present, 1)}
            revision = rng.choice([0, 1, 1, 2])
            yield self._upload(device, end + timedelta(seconds=after_s), measured_at, corrected, revision)

    def _upload(
        self, device: str, arrives_at: datetime, measured_at: datetime, values: dict[int, int], revision: int
    ) -> Upload:
        is_bridge = device == BRIDGE
        readings = [
            metered(meter, measured_at, value, revision=revision)
            if is_bridge
            else pulses(input_of(meter), measured_at, value, revision=revision)
            for meter, value in values.items()
        ]
        versions = [
            version(
                meter,
                measured_at,
                value,
                revision=revision,
                arrived_at=arrives_at,
                source_topic=0 if is_bridge else 1,
                source_place=place,
            )
            for place, (meter, value) in enumerate(values.items())
        ]
        topic = READINGS_BRIDGE if is_bridge else READINGS_LOGGER
        return Upload(arrives_at, topic, device, upload(device, readings), versions)

    def _bad(self, measured_at: datetime) -> Iterator[Upload]:
        """Return records that are refused, wholly or in part."""
        arrives_at = measured_at + MINUTE + timedelta(seconds=15)
        bad = {
            b'{"x":"' + b"x" * 2_000_000 + b'"}': "too_large",
            b"this is no JSON": "malformed",
            upload("LG-404", [pulses(1, measured_at, 1)]): "unknown_device",
        }
        for value, reason in bad.items():
            yield Upload(arrives_at, READINGS_LOGGER, "LG-0", value, (), (reason,))
        later = arrives_at + timedelta(seconds=1)
        in_future = metered(2, measured_at + 11 * MINUTE, 1)
        neighbour = self._upload(BRIDGE, later, measured_at, {1: 77}, 1)
        good = metered(1, measured_at, 77, revision=1)
        value = upload(BRIDGE, [good, in_future, {**good, "pulses": "many"}])
        yield neighbour._replace(value=value, refused=("in_future", "schema_violation"))


def input_of(meter_id: int) -> int:
    """Return the input of its logger that a meter hangs on."""
    return (meter_id - 1) % INPUTS_PER_LOGGER + 1


def logger_of(meter_id: int) -> str:
    """Return the logger that a meter hangs on."""
    return f"LG-{(meter_id - 1) // INPUTS_PER_LOGGER}"


def _compact(instant: datetime) -> str:
    return f"{instant:%Y%m%dT%H%M%SZ}"


def _amount(value: Decimal | None) -> str:
    return "N/A" if value is None else two_decimals(value)


def _rate(value: Decimal | None, resolution_minutes: int) -> str:
    return "N/A" if value is None else two_decimals(hourly_rate(value, resolution_minutes))
