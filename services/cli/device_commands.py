"""`meterpost devices`: loggers and bridges, and what becomes of one that is replaced."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from services.api.audit_store import Change, record
from services.api.catalog_store import CatalogChange, catalog_change
from services.api.device_edits import Ended, end_device, give_kind, remove_device
from services.api.registry_queries import Device, devices_page
from services.cli.api_session import Api
from services.cli.choosing import instant
from services.cli.operator import operator_name
from services.cli.session import Session, command, wall_clock
from services.cli.show import Column, utc
from services.core.times import iso_seconds
from services.platform.errors import UserError
from services.platform.postgres import transaction

app = typer.Typer(no_args_is_help=True, help="Devices: loggers and bridges, changed, ended, removed.")
_COLUMNS = (Column("Device", whole=True), Column("Kind", whole=True))
_DATABASE = ("organization", "database", "as_json")
_PATH = "/v1/devices"
DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="Its id.", show_default=False)]
KindOption = Annotated[
    Literal["logger", "bridge"], typer.Option("--kind", help="What it is from now on.", show_default=False)
]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="From when on. Default: now.", show_default=False)
]


async def list_over_api(session: Session, api: Api) -> None:
    """List devices."""
    found = await api.pages(_PATH, "devices")
    _tell_list(session, [(one["device_id"], one["kind"]) for one in found])


async def edit_over_api(session: Session, api: Api, device_id: str, *, kind: str) -> None:
    """Change a device."""
    path = f"{_PATH}/{quote(device_id, safe='')}"
    before, etag = await api.get_tagged(path)
    await api.send("PATCH", path, {"kind": kind}, etag=etag)
    _tell_edited(session, device_id, kind, changed=before["kind"] != kind)


async def end_over_api(session: Session, api: Api, device_id: str, *, from_: str | None) -> None:
    """End a device."""
    body = {} if from_ is None else {"valid_from": iso_seconds(instant(from_, "--from"))}
    ended = await api.send("POST", f"{_PATH}/{quote(device_id, safe='')}/end", body)
    _tell_ended(
        session, device_id, [_line(one["input"], one["meter_id"], one["valid_from"]) for one in ended["attachments"]]
    )


async def delete_over_api(session: Session, api: Api, device_id: str) -> None:
    """Remove a device."""
    path = f"{_PATH}/{quote(device_id, safe='')}"
    _shown, etag = await api.get_tagged(path)
    await api.send("DELETE", path, etag=etag)
    _tell_deleted(session, device_id)


@command(app, "list", *_DATABASE, over_api=list_over_api)
async def list_(session: Session) -> None:
    """List the devices."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization_id = (await session.organization(connection)).organization_id
        found = await devices_page(connection, organization_id, None, "", limit=1_000_000)
    _tell_list(session, [(one.device_id, one.kind) for one in found])


@command(app, "edit", *_DATABASE, over_api=edit_over_api)
async def edit(session: Session, device_id: DeviceArgument, *, kind: KindOption) -> None:
    """Change the kind of a device that was never attached to a meter."""
    async with session.pool() as pool, catalog_change(pool) as change:
        device, organization_id = await _find(session, change, device_id)
        if changed := kind != device.kind:
            await give_kind(change, device_id, kind)
            await _record(change, organization_id, "device.edit", device_id, _json(device), {"kind": kind})
    _tell_edited(session, device_id, kind, changed=changed)


@command(app, "end", *_DATABASE, over_api=end_over_api)
async def end(session: Session, device_id: DeviceArgument, *, from_: FromOption = None) -> None:
    """Let a device report nothing from some time on, as one that was taken away. Its past stays as it was."""
    valid_from = wall_clock().now() if from_ is None else instant(from_, "--from")
    ended: list[Ended] = []
    async with session.pool() as pool, catalog_change(pool) as change:
        _device, organization_id = await _find(session, change, device_id)
        ended = await end_device(change, device_id, valid_from)
        if ended:
            after = {"ended_from": utc(valid_from), "attachments": len(ended)}
            await _record(change, organization_id, "device.end", device_id, None, after)
    _tell_ended(session, device_id, [_line(one.input, one.meter_id, utc(one.valid_from)) for one in ended])


@command(app, "delete", *_DATABASE, over_api=delete_over_api)
async def delete(session: Session, device_id: DeviceArgument) -> None:
    """Remove a device that was never attached to a meter, such as one with a mistyped id."""
    async with session.pool() as pool, catalog_change(pool) as change:
        device, organization_id = await _find(session, change, device_id)
        await remove_device(change, device_id)
        await _record(change, organization_id, "device.delete", device_id, _json(device), None)
    _tell_deleted(session, device_id)


async def _find(session: Session, change: CatalogChange, device_id: str) -> tuple[Device, int]:
    organization_id = (await session.organization(change.connection)).organization_id
    found = await devices_page(change.connection, organization_id, None, "", device_id=device_id, limit=1)
    if not found:
        raise UserError(f"there is no device {device_id!r}; `meterpost devices list` shows those there are")
    return found[0], organization_id


async def _record(
    change: CatalogChange, organization_id: int, action: str, device_id: str, before: Any, after: Any
) -> None:
    name = operator_name()
    made = Change(organization_id, f"command:{name}", name, action, device_id, before, after)
    await record(change.connection, made, wall_clock().now())


def _json(device: Device) -> dict[str, object]:
    return {"device_id": device.device_id, "kind": device.kind}


def _line(number: int | None, meter_id: int | None, valid_from: str) -> dict[str, object]:
    return {"input": number, "meter_id": meter_id, "valid_from": valid_from}


def _tell_list(session: Session, found: list[tuple[str, str]]) -> None:
    if session.answer.as_json:
        session.answer.json({"devices": [{"device_id": one, "kind": kind} for one, kind in found]})
    elif found:
        session.answer.table(_COLUMNS, found)
    else:
        session.answer.say("There are no devices yet: `meterpost meters import` creates them with their meters.")


def _tell_edited(session: Session, device_id: str, kind: str, *, changed: bool) -> None:
    if session.answer.as_json:
        session.answer.json({"device_id": device_id, "kind": kind, "changed": changed})
    else:
        session.answer.say(f"{'' if changed else 'Nothing changed: '}{device_id} is a {kind}.")


def _tell_ended(session: Session, device_id: str, ended: list[dict[str, object]]) -> None:
    if session.answer.as_json:
        session.answer.json({"device_id": device_id, "ended": ended})
    elif not ended:
        session.answer.say(f"Nothing changed: {device_id} reports no meter from then on.")
    for one in () if session.answer.as_json else ended:
        what = f"meter {one['meter_id']}" if one["input"] is None else f"input {one['input']}"
        session.answer.say(f"{device_id} no longer reports {what} from {one['valid_from']} on.")


def _tell_deleted(session: Session, device_id: str) -> None:
    if session.answer.as_json:
        session.answer.json({"device_id": device_id, "deleted": True})
    else:
        session.answer.say(f"Deleted device {device_id}.")
