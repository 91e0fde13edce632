"""Which meter a reading belongs to: the registry as ingest holds it in memory, effective-dated."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from services.core.readings import RefusalReason
from services.core.times import EPOCH, to_epoch_microseconds


class InputAttachmentRow(NamedTuple):
    """From `valid_from` on, the device's input counts for `meter_id` (None: for no meter)."""

    device_id: str
    input: int
    valid_from: datetime
    revision: int
    meter_id: int | None


class BridgeAttachmentRow(NamedTuple):
    """From `valid_from` on, the device may (`attached`) or may not report `meter_id`."""

    device_id: str
    meter_id: int
    valid_from: datetime
    revision: int
    attached: bool


class RegistryChange(NamedTuple):
    """What the catalog recorded after some revision, up to and with `revision`."""

    revision: int
    devices: list[str]
    meters: list[int]
    input_attachments: list[InputAttachmentRow]
    bridge_attachments: list[BridgeAttachmentRow]
    removed_devices: Sequence[str] = ()
    """Devices that are no more. They were never attached."""


class Timeline:
    """Values that hold from an instant on; of two for the same instant, the higher revision holds."""

    __slots__ = ("_revisions", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[datetime] = []
        self._values: list[int | None] = []
        self._revisions: list[int] = []

    def record(self, valid_from: datetime, revision: int, value: int | None) -> None:
        """Take over one row; the order in which rows come does not matter."""
        place = bisect_right(self._starts, valid_from)
        if place and self._starts[place - 1] == valid_from:
            if revision >= self._revisions[place - 1]:
                self._values[place - 1] = value
                self._revisions[place - 1] = revision
            return
        self._starts.insert(place, valid_from)
        self._values.insert(place, value)
        self._revisions.insert(place, revision)

    def last(self) -> tuple[datetime, int | None]:
        """Return the last change: from when on, and the value that holds since."""
        return self._starts[-1], self._values[-1]

    def at(self, instant: datetime) -> int | None:
        """Return the value in force at `instant`; None before the first."""
        place = bisect_right(self._starts, instant)
        return self._values[place - 1] if place else None


class QuickDevice(NamedTuple):
    """What a device reports since its last change: plain dictionaries for readings from `since_us` on."""

    since_us: int
    inputs: dict[int, int]
    meters: dict[int, int]


@dataclass(slots=True)
class _Device:
    inputs: dict[int, Timeline] = field(default_factory=dict)
    meters: dict[int, Timeline] = field(default_factory=dict)
    quick: QuickDevice | None = None


class Registry:
    """Devices and their meters, as known at `revision`."""

    def __init__(self) -> None:
        self.revision = 0
        self._devices: dict[str, _Device] = {}
        self._meters: set[int] = set()
        self._never_attached: set[str] = set()

    def never_attached(self) -> list[str]:
        """Return the devices that no meter was ever attached to: these alone can be removed."""
        return sorted(self._never_attached)

    def apply(self, change: RegistryChange) -> None:
        """Take over what the catalog recorded since."""
        for device_id in change.removed_devices:
            self._devices.pop(device_id, None)
            self._never_attached.discard(device_id)
        for device_id in change.devices:
            if device_id not in self._devices:
                self._devices[device_id] = _Device()
                self._never_attached.add(device_id)
        self._never_attached.difference_update(row.device_id for row in change.input_attachments)
        self._never_attached.difference_update(row.device_id for row in change.bridge_attachments)
        self._meters.update(change.meters)
        for row in change.input_attachments:
            device = self._devices[row.device_id]
            device.quick = None
            timeline = device.inputs.setdefault(row.input, Timeline())
            timeline.record(row.valid_from, row.revision, row.meter_id)
        for link in change.bridge_attachments:
            device = self._devices[link.device_id]
            device.quick = None
            timeline = device.meters.setdefault(link.meter_id, Timeline())
            timeline.record(link.valid_from, link.revision, link.meter_id if link.attached else None)
        self.revision = max(self.revision, change.revision)

    def quick(self, device_id: str) -> QuickDevice | None:
        """Return what the device reports since its last change; None where it is not registered."""
        device = self._devices.get(device_id)
        if device is None:
            return None
        if device.quick is None:
            inputs = {number: timeline.last() for number, timeline in device.inputs.items()}
            meters = {meter_id: timeline.last() for meter_id, timeline in device.meters.items()}
            since = max((start for start, _value in (*inputs.values(), *meters.values())), default=EPOCH)
            device.quick = QuickDevice(
                to_epoch_microseconds(since),
                {number: meter_id for number, (_start, meter_id) in inputs.items() if meter_id is not None},
                {number: meter_id for number, (_start, meter_id) in meters.items() if meter_id is not None},
            )
        return device.quick

    def meter_of_input(self, device_id: str, input_: int, measured_at: datetime) -> int | RefusalReason:
        """Return the meter that the input counts for at `measured_at`, or why there is none."""
        device = self._devices.get(device_id)
        if device is None:
            return RefusalReason.UNKNOWN_DEVICE
        timeline = device.inputs.get(input_)
        if timeline is None:
            return RefusalReason.UNKNOWN_INPUT
        meter_id = timeline.at(measured_at)
        return RefusalReason.NOT_ATTACHED if meter_id is None else meter_id

    def meter_of_bridge(self, device_id: str, meter_id: int, measured_at: datetime) -> int | RefusalReason:
        """Return `meter_id` where the device may report it at `measured_at`, else why not."""
        device = self._devices.get(device_id)
        if device is None:
            return RefusalReason.UNKNOWN_DEVICE
        timeline = device.meters.get(meter_id)
        if timeline is None:
            return RefusalReason.NOT_ATTACHED if meter_id in self._meters else RefusalReason.UNKNOWN_METER
        return RefusalReason.NOT_ATTACHED if timeline.at(measured_at) is None else meter_id
