"""Devices changed, ended, removed."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec

from services.api.catalog_store import catalog_change
from services.api.device_edits import end_device, give_kind, remove_device
from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.problems import invalid
from services.api.http.routes.devices import AttachmentShown, DeviceShown, Kind, find_device, shown_device
from services.api.http.routes.sites import from_when

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class DeviceChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change: the kind, while the device was never attached."""

    kind: Kind


class EndBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From when on the device reports nothing."""

    valid_from: Annotated[Instant, msgspec.Meta(description="Left out: from now on.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class DeviceEnded(msgspec.Struct, frozen=True):
    """The attachments that end the device; none: it had ended before. Its past stays as it was."""

    device_id: str
    attachments: list[AttachmentShown]


async def edit_device(call: Call) -> Answer:
    """Change a device."""
    kind = call.body(DeviceChanges).kind
    async with catalog_change(call.connection) as change:
        before = shown_device(await find_device(call))
        call.match(before)
        if kind != before.kind:
            await give_kind(change, before.device_id, kind)
            after = DeviceShown(before.device_id, kind, change.revision)
            await call.audit("device.edit", before.device_id, before, after)
    return Answer(shown_device(await find_device(call)))


async def end(call: Call) -> Answer:
    """End a device."""
    valid_from = from_when(call, call.body(EndBody).valid_from) or call.now
    if valid_from < _EARLIEST:
        raise invalid("valid_from", "no device reported then; take a later instant")
    attachments: list[AttachmentShown] = []
    async with catalog_change(call.connection) as change:
        device = await find_device(call)
        attachments = [
            AttachmentShown(device.device_id, one.input, one.meter_id, False, one.valid_from, change.revision)
            for one in await end_device(change, device.device_id, valid_from)
        ]
        ended = DeviceEnded(device.device_id, attachments)
        if attachments:
            await call.audit("device.end", device.device_id, None, ended)
    return Answer(DeviceEnded(device.device_id, attachments))


async def remove(call: Call) -> Answer:
    """Remove a device."""
    async with catalog_change(call.connection) as change:
        before = shown_device(await find_device(call))
        call.match(before)
        await remove_device(change, before.device_id)
        await call.audit("device.delete", before.device_id, before, None)
    return Answer(None, 204)


ENDPOINTS = (
    Endpoint(
        *("PATCH", "/v1/devices/{device_id}", "edit_device", "Change a device that was never attached"),
        *(edit_device, "admin", DeviceShown),
        body=DeviceChanges,
        body_form="json",
        is_whole_organization=True,
        has_etag=True,
    ),
    Endpoint(
        *("POST", "/v1/devices/{device_id}/end", "end_device", "Let a device report nothing from some time on"),
        *(end, "admin", DeviceEnded),
        body=EndBody,
        body_form="json",
        is_whole_organization=True,
    ),
    Endpoint(
        *("DELETE", "/v1/devices/{device_id}", "delete_device", "Remove a device that was never attached"),
        *(remove, "admin", None, 204),
        is_whole_organization=True,
        has_etag=True,
    ),
)
