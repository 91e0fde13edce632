"""The registry as in force at an instant and as known at a revision, page by page. Read only.

Everywhere, `sites` are the sites that the caller may see; None: all of them. `valid_from` None: since ever.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from services.platform.postgres import Connection


class AsKnown(NamedTuple):
    """Which state of the catalog is asked for."""

    at: datetime
    revision: int


class Site(NamedTuple):
    """A site, as described."""

    site_id: int
    account_id: int | None
    name: str
    time_zone: str
    valid_from: datetime | None
    revision: int


class Device(NamedTuple):
    """A device, which never changes."""

    device_id: str
    kind: str
    revision: int


class Meter(NamedTuple):
    """A meter with its configuration."""

    meter_id: int
    meter_type: str
    utility: str
    serial_number: str | None
    name: str
    site_id: int
    unit: str
    units_per_pulse: Decimal
    normalization_factor: Decimal
    calorific_value: Decimal | None
    register_modulus: int | None
    cadence_minutes: int
    valid_from: datetime | None
    revision: int


class Attachment(NamedTuple):
    """From `valid_from` on, the device reports the meter, or no longer; `input` None: a bridge."""

    device_id: str
    input: int | None
    meter_id: int | None
    attached: bool
    valid_from: datetime | None
    revision: int


class MeterFilter(NamedTuple):
    """Which meters are asked for."""

    search: str | None = None
    site_ids: Sequence[int] | None = None
    utility: str | None = None
    meter_id: int | None = None
    among: Sequence[int] | None = None
    """No other meters; None: any. It spares looking at the others; the rest is asked of these all the same."""


_SITES = """
SELECT s.site_id, s.account_id, d.name, d.time_zone, nullif(d.valid_from, '-infinity'), d.revision
FROM site s
CROSS JOIN LATERAL (
    SELECT name, time_zone, valid_from, revision FROM site_description
    WHERE site_id = s.site_id AND valid_from <= $2 AND revision <= $3
    ORDER BY valid_from DESC, revision DESC LIMIT 1
) d
WHERE s.organization_id = $1 AND s.site_id > $4 AND ($5::int[] IS NULL OR s.site_id = ANY ($5))
  AND ($6::text IS NULL OR position(lower($6) IN lower(d.name)) > 0)
ORDER BY s.site_id LIMIT $7
"""

_METERS = """
SELECT m.meter_id, m.meter_type, m.utility, m.serial_number, c.name, c.site_id, c.unit, c.units_per_pulse,
       c.normalization_factor, c.calorific_value, c.register_modulus, c.cadence_minutes,
       nullif(c.valid_from, '-infinity'), c.revision
FROM meter m
CROSS JOIN LATERAL (
    SELECT * FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= $2 AND revision <= $3
    ORDER BY valid_from DESC, revision DESC LIMIT 1
) c
WHERE m.organization_id = $1 AND m.meter_id > $4 AND ($5::int[] IS NULL OR c.site_id = ANY ($5))
  AND ($6::int[] IS NULL OR c.site_id = ANY ($6)) AND ($7::text IS NULL OR m.utility = $7)
  AND ($8::text IS NULL OR position(lower($8) IN lower(c.name || ' ' || coalesce(m.serial_number, ''))) > 0)
  AND ($9::int IS NULL OR m.meter_id = $9)
{among}
ORDER BY m.meter_id LIMIT $10
"""
_ALL_METERS = _METERS.format(among="")
_SOME_METERS = _METERS.format(among="AND m.meter_id = ANY ($11::int[])")

# A caller who is held to some sites sees the devices that ever reported a meter that stands there.
_DEVICES = """
SELECT d.device_id, d.kind, d.revision FROM device d
WHERE d.organization_id = $1 AND d.device_id > $2 AND ($3::text IS NULL OR d.kind = $3)
  AND ($4::text IS NULL OR position(lower($4) IN lower(d.device_id)) > 0) AND ($5::text IS NULL OR d.device_id = $5)
  AND ($6::int[] IS NULL OR EXISTS (
      SELECT FROM meter_configuration c
      WHERE c.site_id = ANY ($6)
        AND (c.meter_id IN (SELECT meter_id FROM input_attachment WHERE device_id = d.device_id)
             OR c.meter_id IN (SELECT meter_id FROM bridge_attachment WHERE device_id = d.device_id))))
ORDER BY d.device_id LIMIT $7
"""

_ATTACHMENTS = """
WITH known AS (
    SELECT a.device_id, a.input::int AS input, a.meter_id, a.meter_id IS NOT NULL AS attached, a.valid_from, a.revision,
           0 AS bridged_meter
    FROM input_attachment a JOIN device d USING (device_id)
    WHERE d.organization_id = $1 AND a.revision <= $2 AND ($3::text IS NULL OR device_id = $3)
    UNION ALL
    SELECT a.device_id, NULL, a.meter_id, a.attached, a.valid_from, a.revision, a.meter_id
    FROM bridge_attachment a JOIN device d USING (device_id)
    WHERE d.organization_id = $1 AND a.revision <= $2 AND ($3::text IS NULL OR device_id = $3)
), shown AS (
    SELECT * FROM known WHERE $4::timestamptz IS NULL
    UNION ALL
    (SELECT DISTINCT ON (device_id, input, bridged_meter) * FROM known
     WHERE $4::timestamptz IS NOT NULL AND valid_from <= $4
     ORDER BY device_id, input, bridged_meter, valid_from DESC, revision DESC)
)
SELECT device_id, input, meter_id, attached, nullif(valid_from, '-infinity'), revision
FROM shown
WHERE ($5::int IS NULL OR meter_id = $5) AND ($4::timestamptz IS NULL OR attached)
  AND ($6::int[] IS NULL OR meter_id IN (SELECT meter_id FROM meter_configuration WHERE site_id = ANY ($6)))
  AND (device_id, coalesce(input, -1), bridged_meter, shown.valid_from, revision)
      > ($7::text, $8::int, $9::int, coalesce($10, '-infinity'::timestamptz), $11::bigint)
ORDER BY device_id, coalesce(input, -1), bridged_meter, shown.valid_from, revision
LIMIT $12
"""


async def current_revision(connection: Connection) -> int:
    """Return the newest revision of the catalog."""
    revision: int = await connection.fetchval("SELECT revision FROM catalog_revision")
    return revision


async def sites_page(
    connection: Connection,
    organization_id: int,
    known: AsKnown,
    sites: Sequence[int] | None,
    after: int,
    search: str | None,
    limit: int,
) -> list[Site]:
    """Return sites by id."""
    rows = await connection.fetch(_SITES, organization_id, *known, after, _ints(sites), search, limit)
    return [Site(*row) for row in rows]


async def find_site(connection: Connection, organization_id: int, known: AsKnown, site_id: int) -> Site | None:
    """Return one site of the organization."""
    rows = await connection.fetch(_SITES, organization_id, *known, site_id - 1, [site_id], None, 1)
    return Site(*rows[0]) if rows else None


async def site_history(connection: Connection, organization_id: int, site_id: int) -> list[Site]:
    """Return every description that a site ever had, corrected ones too."""
    rows = await connection.fetch(
        "SELECT s.site_id, s.account_id, d.name, d.time_zone, nullif(d.valid_from, '-infinity'), d.revision "
        "FROM site s JOIN site_description d USING (site_id) WHERE s.organization_id = $1 AND s.site_id = $2 "
        "ORDER BY d.valid_from, d.revision",
        *(organization_id, site_id),
    )
    return [Site(*row) for row in rows]


async def meters_page(
    connection: Connection,
    organization_id: int,
    known: AsKnown,
    sites: Sequence[int] | None,
    after: int,
    wanted: MeterFilter,
    limit: int,
) -> list[Meter]:
    """Return meters by id; a search looks into names and serial numbers."""
    rows = await connection.fetch(
        _ALL_METERS if wanted.among is None else _SOME_METERS,
        *(organization_id, *known, after, _ints(sites), _ints(wanted.site_ids)),
        *(wanted.utility, wanted.search, wanted.meter_id, limit),
        *(() if wanted.among is None else (_ints(wanted.among),)),
    )
    return [Meter(*row) for row in rows]


async def meter_history(connection: Connection, organization_id: int, meter_id: int) -> list[Meter]:
    """Return every configuration that a meter ever had, corrected ones too."""
    rows = await connection.fetch(
        """
        SELECT m.meter_id, m.meter_type, m.utility, m.serial_number, c.name, c.site_id, c.unit, c.units_per_pulse,
               c.normalization_factor, c.calorific_value, c.register_modulus, c.cadence_minutes,
               nullif(c.valid_from, '-infinity'), c.revision
        FROM meter m JOIN meter_configuration c USING (meter_id) WHERE m.organization_id = $1 AND m.meter_id = $2
        ORDER BY c.valid_from, c.revision
        """,
        *(organization_id, meter_id),
    )
    return [Meter(*row) for row in rows]


async def devices_page(
    connection: Connection,
    organization_id: int,
    sites: Sequence[int] | None,
    after: str,
    *,
    kind: str | None = None,
    search: str | None = None,
    device_id: str | None = None,
    limit: int,
) -> list[Device]:
    """Return devices by id."""
    rows = await connection.fetch(_DEVICES, organization_id, after, kind, search, device_id, _ints(sites), limit)
    return [Device(*row) for row in rows]


async def attachments_page(
    connection: Connection,
    organization_id: int,
    revision: int,
    at: datetime | None,
    sites: Sequence[int] | None,
    *,
    device_id: str | None,
    meter_id: int | None,
    after: Sequence[object],
    limit: int,
) -> list[Attachment]:
    """Return attachments in force `at` an instant; with None, every row there ever was, corrected ones too."""
    rows = await connection.fetch(
        _ATTACHMENTS,
        *(organization_id, revision, device_id, at, meter_id, _ints(sites)),
        *(*after, limit),
    )
    return [Attachment(*row) for row in rows]


def _ints(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)
