"""Changes of devices, within a `CatalogChange`: another kind, an end, and removal where nothing ever hung on one."""

from datetime import datetime
from typing import Any, NamedTuple

from services.api.catalog_store import BridgeLink, CatalogChange, InputLink
from services.platform.errors import UserError

# In force at the instant, or later: each is answered by one of the same start (not before the instant) that ends it.
_INPUTS = """
WITH newest AS (
    SELECT DISTINCT ON (input, valid_from) input, valid_from, meter_id FROM input_attachment
    WHERE device_id = $1 ORDER BY input, valid_from, revision DESC
), in_force AS (
    SELECT DISTINCT ON (input) input, meter_id FROM newest WHERE valid_from <= $2 ORDER BY input, valid_from DESC
)
SELECT input::int, $2 AS valid_from FROM in_force WHERE meter_id IS NOT NULL
UNION SELECT input::int, valid_from FROM newest WHERE valid_from > $2 AND meter_id IS NOT NULL
ORDER BY input, valid_from
"""
_METERS = """
WITH newest AS (
    SELECT DISTINCT ON (meter_id, valid_from) meter_id, valid_from, attached FROM bridge_attachment
    WHERE device_id = $1 ORDER BY meter_id, valid_from, revision DESC
), in_force AS (
    SELECT DISTINCT ON (meter_id) meter_id, attached FROM newest WHERE valid_from <= $2
    ORDER BY meter_id, valid_from DESC
)
SELECT meter_id, $2 AS valid_from FROM in_force WHERE attached
UNION SELECT meter_id, valid_from FROM newest WHERE valid_from > $2 AND attached
ORDER BY meter_id, valid_from
"""
_HAS_LINKS = """
SELECT EXISTS (SELECT FROM input_attachment WHERE device_id = $1)
    OR EXISTS (SELECT FROM bridge_attachment WHERE device_id = $1)
"""


class Ended(NamedTuple):
    """An input, or a meter of a bridge, that a device reports no longer from an instant on."""

    input: int | None
    meter_id: int | None
    valid_from: datetime


async def give_kind(change: CatalogChange, device_id: str, kind: str) -> None:
    """Make a device that was never attached a logger, or a bridge. Raises UserError for one that was."""
    await _refuse_attached(change, device_id, "its kind stays: end it, and create another device")
    change.has_changed = True
    await change.connection.execute(
        "UPDATE device SET kind = $2, revision = $3 WHERE device_id = $1", device_id, kind, change.revision
    )


async def end_device(change: CatalogChange, device_id: str, valid_from: datetime) -> list[Ended]:
    """Let a device report nothing from an instant on, whatever would begin later; return what ended."""
    inputs: list[Any] = await change.connection.fetch(_INPUTS, device_id, valid_from)
    meters: list[Any] = await change.connection.fetch(_METERS, device_id, valid_from)
    await change.attach_inputs([InputLink(device_id, number, None, at) for number, at in inputs])
    await change.attach_bridges([BridgeLink(device_id, meter_id, at, attached=False) for meter_id, at in meters])
    return [
        *(Ended(number, None, at) for number, at in inputs),
        *(Ended(None, meter_id, at) for meter_id, at in meters),
    ]


async def remove_device(change: CatalogChange, device_id: str) -> None:
    """Remove a device that was never attached. Raises UserError for one that was: its past is needed."""
    await _refuse_attached(change, device_id, "it stays on record: end it instead")
    change.has_changed = True
    await change.connection.execute("DELETE FROM device WHERE device_id = $1", device_id)


async def _refuse_attached(change: CatalogChange, device_id: str, what_to_do: str) -> None:
    if await change.connection.fetchval(_HAS_LINKS, device_id):
        raise UserError(f"device {device_id} was attached to meters, so {what_to_do}")
