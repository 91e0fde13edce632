"""Devices (loggers and bridges), their inputs, and which meters they report."""

from typing import Annotated, Literal

import msgspec

from services.api import registry_queries
from services.api.catalog_store import BridgeLink, InputLink, NewDevice, catalog_change
from services.api.http.call import Call
from services.api.http.decoding import Id, Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.known import At, KnownQuery, Revision, ValidFrom, as_known
from services.api.http.paging import Cursor, Limit, PageQuery, link, page, read_cursor
from services.api.http.problems import Problem, invalid, not_found
from services.api.http.routes.sites import from_when
from services.api.registry_queries import Attachment, Device

DeviceId = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x20/\x7f]+$", description="The key of its records."),
]
Input = Annotated[int, msgspec.Meta(ge=0, le=32_767)]
Kind = Literal["logger", "bridge"]
_FIRST = ("", -1_000, 0, None, 0)


class DeviceShown(msgspec.Struct, frozen=True):
    """A device."""

    device_id: str
    kind: str
    catalog_revision: int


class Devices(msgspec.Struct, frozen=True):
    """A page of devices."""

    devices: list[DeviceShown]
    next_cursor: str | None


class DevicesQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which devices."""

    kind: Kind | None = None
    search: Annotated[str, msgspec.Meta(max_length=100, description="Part of the id.")] | None = None


class DeviceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device to be created; its id is unique on the platform."""

    device_id: DeviceId
    kind: Kind


class AttachmentShown(msgspec.Struct, frozen=True):
    """From `valid_from` on (null: since ever) the device reports the meter, or (`attached` false) no longer.

    `input` null: the device is a bridge, which names the meter. `meter_id` null: the input counts for no meter.
    """

    device_id: str
    input: int | None
    meter_id: int | None
    attached: bool
    valid_from: Instant | None
    catalog_revision: int


class Attachments(msgspec.Struct, frozen=True):
    """A page of attachments."""

    attachments: list[AttachmentShown]
    next_cursor: str | None


class InputShown(msgspec.Struct, frozen=True):
    """An input of a logger, and the meter it counts for."""

    input: int
    meter_id: int | None
    valid_from: Instant | None
    catalog_revision: int


class Inputs(msgspec.Struct, frozen=True):
    """The inputs of a logger that were ever attached to a meter."""

    inputs: list[InputShown]


class AttachmentsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which attachments: those in force at an instant, or with `history` every one there ever was."""

    at: At | None = None
    revision: Revision | None = None
    history: bool = False
    device_id: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    meter_id: Id | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class AttachmentBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a device reports from some time on.

    A logger: `input`, and the meter it counts for (null: none). A bridge: the meter, and whether it may report it.
    """

    device_id: DeviceId
    input: Input | None = None
    meter_id: Id | None = None
    attached: bool = True
    valid_from: ValidFrom | msgspec.UnsetType | None = msgspec.UNSET


async def list_devices(call: Call) -> Answer:
    """List devices by id."""
    query = call.query(DevicesQuery)
    [after] = read_cursor(query, [str]) or [""]
    rows = await registry_queries.devices_page(
        *(call.connection, call.organization_id, call.caller.site_ids, after),
        kind=query.kind,
        search=query.search,
        limit=query.limit + 1,
    )
    found, cursor = page(query, rows, lambda one: [one.device_id])
    return Answer(Devices([shown_device(one) for one in found], cursor), headers=link(call, cursor))


async def show_device(call: Call) -> Answer:
    """Show a device."""
    return Answer(shown_device(await find_device(call)))


async def create_device(call: Call) -> Answer:
    """Create a device."""
    new = call.body(DeviceBody)
    async with catalog_change(call.connection) as change:
        if await call.connection.fetchval("SELECT true FROM device WHERE device_id = $1", new.device_id):
            raise Problem("conflict", f"the device id {new.device_id} is taken on this platform", field="device_id")
        await change.add_devices(call.organization_id, [NewDevice(new.device_id, new.kind)])
        device = DeviceShown(new.device_id, new.kind, change.revision)
        await call.audit("device.create", new.device_id, None, device)
    return Answer(device, 201, {"Location": f"/v1/devices/{new.device_id}"})


async def show_inputs(call: Call) -> Answer:
    """Show a logger's inputs."""
    device = await find_device(call)
    known = await as_known(call, call.query(KnownQuery))
    rows = await call.connection.fetch(
        """
        SELECT DISTINCT ON (input) input::int, meter_id, nullif(valid_from, '-infinity'), revision FROM input_attachment
        WHERE device_id = $1 AND valid_from <= $2 AND revision <= $3 ORDER BY input, valid_from DESC, revision DESC
        """,
        *(device.device_id, *known),
    )
    return Answer(Inputs([InputShown(*row) for row in rows]))


async def list_attachments(call: Call) -> Answer:
    """List attachments by device."""
    query = call.query(AttachmentsQuery)
    known = await as_known(call, KnownQuery(at=query.at, revision=query.revision))
    if query.history and query.at is not None:
        raise invalid("history", "history shows every attachment there ever was; leave `at` out")
    after = read_cursor(query, [str, int, int, Instant | None, int]) or _FIRST  # type: ignore[list-item]
    rows = await registry_queries.attachments_page(
        *(call.connection, call.organization_id, known.revision, None if query.history else known.at),
        call.caller.site_ids,
        device_id=query.device_id,
        meter_id=query.meter_id,
        after=after,
        limit=query.limit + 1,
    )
    found, cursor = page(query, rows, _key)
    return Answer(Attachments([_attachment(one) for one in found], cursor), headers=link(call, cursor))


async def attach(call: Call) -> Answer:
    """Say which meter a device reports from some time on."""
    new = call.body(AttachmentBody)
    async with catalog_change(call.connection) as change:
        found = await registry_queries.devices_page(
            call.connection, call.organization_id, None, "", device_id=new.device_id, limit=1
        )
        if not found:
            raise invalid("device_id", f"the organization has no device {new.device_id}")
        await _check_link(call, new, found[0].kind)
        valid_from = from_when(call, new.valid_from)
        if new.input is not None:
            meter_id = new.meter_id if new.attached else None
            await change.attach_inputs([InputLink(new.device_id, new.input, meter_id, valid_from)])
            is_attached = meter_id is not None
        else:
            meter_id, is_attached = new.meter_id, new.attached
            await change.attach_bridges([BridgeLink(new.device_id, meter_id or 0, valid_from, attached=new.attached)])
        shown = AttachmentShown(new.device_id, new.input, meter_id, is_attached, valid_from, change.revision)
        await call.audit("attachment.create", new.device_id, None, shown)
    return Answer(shown, 201)


async def _check_link(call: Call, new: AttachmentBody, kind: str) -> None:
    if kind == "logger" and new.input is None:
        raise invalid("input", f"{new.device_id} is a logger: name the input that counts for the meter")
    if kind == "bridge" and new.input is not None:
        raise invalid("input", f"{new.device_id} is a bridge, which names its meters: leave input out")
    if kind == "bridge" and new.meter_id is None:
        raise invalid("meter_id", f"{new.device_id} is a bridge: name the meter")
    if new.meter_id is not None:
        known = await call.connection.fetchval(
            "SELECT true FROM meter WHERE organization_id = $1 AND meter_id = $2", call.organization_id, new.meter_id
        )
        if not known:
            raise invalid("meter_id", f"the organization has no meter {new.meter_id}")


async def find_device(call: Call) -> Device:
    """Return the device of the path. Raises Problem where the caller may see none of this id."""
    device_id = call.path["device_id"].replace("\0", "")
    found = await registry_queries.devices_page(
        call.connection, call.organization_id, call.caller.site_ids, "", device_id=device_id, limit=1
    )
    if not found:
        raise not_found(f"device {device_id[:100]}")
    return found[0]


def _key(one: Attachment) -> list[object]:
    if one.input is None:
        return [one.device_id, -1, one.meter_id, one.valid_from, one.revision]
    return [one.device_id, one.input, 0, one.valid_from, one.revision]


def shown_device(one: Device) -> DeviceShown:
    """Return a device as it is shown."""
    return DeviceShown(one.device_id, one.kind, one.revision)


def _attachment(one: Attachment) -> AttachmentShown:
    return AttachmentShown(*one)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/devices", "list_devices", "Loggers and bridges"),
        *(list_devices, "viewer", Devices),
        query=DevicesQuery,
    ),
    Endpoint(
        *("POST", "/v1/devices", "create_device", "Create a device"),
        *(create_device, "admin", DeviceShown, 201),
        body=DeviceBody,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
        codes=("conflict",),
    ),
    Endpoint(
        *("GET", "/v1/devices/{device_id}", "show_device", "A device"),
        *(show_device, "viewer", DeviceShown),
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/devices/{device_id}/inputs", "show_inputs", "A logger's inputs and what they count for"),
        *(show_inputs, "viewer", Inputs),
        query=KnownQuery,
    ),
    Endpoint(
        *("GET", "/v1/attachments", "list_attachments", "Which devices report which meters"),
        *(list_attachments, "viewer", Attachments),
        query=AttachmentsQuery,
    ),
    Endpoint(
        *("POST", "/v1/attachments", "attach", "Say which meter a device reports from some time on"),
        *(attach, "admin", AttachmentShown, 201),
        body=AttachmentBody,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
    ),
)
