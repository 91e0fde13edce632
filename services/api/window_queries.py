"""Everything that is known of one meter's closed window. Read only: ingest, windowing and delivery own the tables."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple

from services.core.counting import KnownReading, without_overlaps
from services.core.parts import run_id
from services.core.readings import ReadingVersion, newest
from services.platform.postgres import Connection

Role = Literal[
    "counted",
    "outranked",
    "late",
    "stored after the window was forced",
    "longer than the window",
    "not counted: of the other kind",
    "not counted: inside a longer one",
]


class Measurement(NamedTuple):
    """The row."""

    intervals_present: int
    intervals_expected: int
    pulses: int
    energy_wh: Decimal | None
    volume: Decimal | None
    flags: int
    register_start: int | None
    register_start_at: datetime | None
    register_end: int | None
    register_end_at: datetime | None


class Closing(NamedTuple):
    """The proof of the window, which stands for all meters of its bucket."""

    bucket: int
    cut_off: datetime
    catalog_revision: int
    row_count: int
    sha256: bytes
    offsets: str
    closed_at: datetime
    force_id: int | None


class Configuration(NamedTuple):
    """What was in force at the window's start, as known when it was closed (or now, where it was not)."""

    meter_name: str
    meter_type: str
    utility: str
    site_id: int
    unit: str
    units_per_pulse: Decimal
    normalization_factor: Decimal
    calorific_value: Decimal | None
    register_modulus: int | None
    cadence_minutes: int
    valid_from: datetime
    revision: int


class Version(NamedTuple):
    """A version of a reading in the window, and what became of it there."""

    role: Role
    reading: ReadingVersion
    late_by: timedelta | None
    """Arrival minus cut-off, where it came after it."""


class Carried(NamedTuple):
    """A run that carries the row, and in which part; None: not frozen yet, or it has no row."""

    run: str
    state: str
    part: int | None
    part_state: str | None


class WindowStory(NamedTuple):
    """All of it."""

    is_closed: bool
    closed_until: datetime | None
    cut_off: datetime
    forced_by: str | None
    """Why, where an operator had it closed before everything was stored."""
    row: Measurement | None
    closing: Closing | None
    configuration: Configuration | None
    versions: Sequence[Version]
    events: Sequence[tuple[str, str]]
    """Kind and detail (JSON)."""
    runs: Sequence[Carried]
    dropped_until: datetime | None
    """Where the window starts before it: its row, if it had one, was dropped by retention."""


_VERSIONS = """
SELECT {columns}, was_stored($4::jsonb, source_topic, source_partition, source_offset) AS was_stored FROM {table}
WHERE measured_at >= $1 AND measured_at < $2 AND meter_id = $3
"""

_STANDS = """
SELECT f.bucket, f.closed_until, g.grace, forced.stored_before, forced.reason
FROM window_frontier f
LEFT JOIN LATERAL (
    SELECT grace FROM window_grace
    WHERE resolution_minutes = $1 AND bucket = f.bucket AND from_start <= $3 ORDER BY from_start DESC LIMIT 1
) g ON true
LEFT JOIN LATERAL (
    SELECT w.stored_before, o.reason FROM window_forced w JOIN window_force o USING (force_id)
    WHERE w.resolution_minutes = $1 AND w.bucket = f.bucket AND w.from_start <= $3 AND w.until_start > $3
) forced ON true
WHERE f.resolution_minutes = $1 AND f.bucket = $2 % (SELECT max(bucket) + 1 FROM window_frontier)
"""

_CONFIGURATION = """
SELECT c.name, m.meter_type, m.utility, c.site_id, c.unit, c.units_per_pulse, c.normalization_factor,
       c.calorific_value, c.register_modulus, c.cadence_minutes,
       greatest(c.valid_from, '0001-01-02Z'::timestamptz), c.revision
FROM meter m JOIN meter_configuration c USING (meter_id)
WHERE meter_id = $1 AND valid_from <= $2
  AND c.revision <= coalesce($3, (SELECT revision FROM catalog_revision))
ORDER BY valid_from DESC, c.revision DESC LIMIT 1
"""

# A slot may be shorter than its frequency, and begin anywhere, but never longer.
_RUNS = """
SELECT r.job_id, r.slot_start, r.state, p.part, p.state AS part_state
FROM export_job_version v
JOIN export_run r ON r.organization_id = v.organization_id AND r.job_id = v.job_id AND r.job_version = v.version
                 AND r.slot_start > $3::timestamptz - v.frequency_minutes * interval '1 minute'
                 AND r.slot_start <= $3 AND r.slot_end > $3
LEFT JOIN LATERAL (
    SELECT part, state FROM export_part
    WHERE organization_id = r.organization_id AND job_id = r.job_id AND slot_start = r.slot_start
      AND (first_measured_at, first_meter_id) <= ($3, $4) AND $5
    ORDER BY part DESC LIMIT 1
) p ON true
WHERE v.organization_id = $1 AND v.resolution_minutes = $2 AND v.data = 'meters_measurements' AND r.state <> 'skipped'
  AND (v.site_ids IS NULL OR (
      SELECT site_id FROM meter_configuration
      WHERE meter_id = $4 AND valid_from <= $3 AND revision <= r.catalog_revision
      ORDER BY valid_from DESC, revision DESC LIMIT 1
  ) = ANY (v.site_ids))
ORDER BY r.job_id
"""


async def window_story(
    connection: Connection, organization_id: int, meter_id: int, resolution_minutes: int, start: datetime
) -> WindowStory | None:
    """Return what is known of a meter's window; None before any window was closed."""
    stands = await connection.fetchrow(_STANDS, resolution_minutes, meter_id, start)
    if stands is None:
        return None
    key = (resolution_minutes, start)
    row = await connection.fetchrow(
        f"SELECT {', '.join(Measurement._fields)} FROM measurement "  # noqa: S608 - columns of ours
        "WHERE resolution_minutes = $1 AND window_start = $2 AND organization_id = $3 AND meter_id = $4",
        *key, organization_id, meter_id,
    )  # fmt: skip
    closing = await connection.fetchrow(
        f"SELECT {', '.join(Closing._fields)} FROM window_closing "  # noqa: S608 - columns of ours
        "WHERE resolution_minutes = $1 AND window_start = $2 AND bucket = $3",
        *key, stands["bucket"],
    )  # fmt: skip
    cut_off = start + timedelta(minutes=resolution_minutes) + (stands["grace"] or timedelta(0))
    if closing is not None:
        cut_off = closing["cut_off"]
    revision = None if closing is None else closing["catalog_revision"]
    configuration = await connection.fetchrow(_CONFIGURATION, meter_id, start, revision)
    events = await connection.fetch(
        "SELECT kind, detail FROM meter_event WHERE resolution_minutes = $1 AND window_start = $2 "
        "AND organization_id = $3 AND meter_id = $4 ORDER BY kind",
        *key, organization_id, meter_id,
    )  # fmt: skip
    runs = await connection.fetch(_RUNS, organization_id, resolution_minutes, start, meter_id, row is not None)
    dropped_until: datetime | None = await connection.fetchval(
        "SELECT dropped_until FROM measurement_retention WHERE resolution_minutes = $1", resolution_minutes
    )
    return WindowStory(
        is_closed=start < stands["closed_until"],
        closed_until=stands["closed_until"],
        cut_off=cut_off,
        forced_by=stands["reason"],
        row=None if row is None else Measurement(*row),
        closing=None if closing is None else Closing(*closing),
        configuration=None if configuration is None else Configuration(*configuration),
        versions=_as_counted(
            await _versions(connection, meter_id, resolution_minutes, start, cut_off, stands["stored_before"]),
            None if row is None else row["register_end"] is not None,
        ),
        events=[(event["kind"], event["detail"]) for event in events],
        runs=[Carried(run_id(run[0], run[1]), *tuple(run)[2:]) for run in runs],
        dropped_until=dropped_until if dropped_until is not None and start < dropped_until else None,
    )


async def _versions(
    connection: Connection,
    meter_id: int,
    resolution_minutes: int,
    start: datetime,
    cut_off: datetime,
    stored_before: str | None,
) -> list[Version]:
    end = start + timedelta(minutes=resolution_minutes)
    columns = ", ".join(ReadingVersion._fields)
    found: list[tuple[ReadingVersion, bool]] = []
    for table in ("reading", "reading_superseded"):
        query = _VERSIONS.format(columns=columns, table=table)
        rows = await connection.fetch(query, start, end, meter_id, stored_before)
        found += [(ReadingVersion(*tuple(row)[:-1]), row["was_stored"]) for row in rows]
    found.sort(key=lambda one: (one[0].measured_at, one[0].order))
    versions = []
    for version, was_stored in found:
        rivals = [one for one, stored in found if one.measured_at == version.measured_at and stored]
        late_by = version.arrived_at - cut_off if version.arrived_at > cut_off else None
        role: Role = "counted"
        if version.interval_minutes > resolution_minutes:
            role, late_by = "longer than the window", None
        elif late_by is not None:
            role = "late"
        elif not was_stored:
            role = "stored after the window was forced"
        elif version != newest(rivals, as_of=cut_off):
            role = "outranked"
        versions.append(Version(role, version, late_by))
    return versions


def _as_counted(versions: list[Version], by_register: bool | None) -> list[Version]:
    """Tell what counted from what was in time and did not count; `by_register` is None where there is no row."""
    in_time = {
        KnownReading(one.measured_at, one.interval_minutes, one.value, one.is_register): place
        for place, (role, one, _late_by) in enumerate(versions)
        if role == "counted"
    }
    if by_register is None:
        by_register = any(known.is_register for known in in_time)
    roles: dict[int, Role] = {
        place: "not counted: of the other kind" for known, place in in_time.items() if known.is_register != by_register
    }
    if not by_register:
        _, inside = without_overlaps([known for known in in_time if not known.is_register])
        roles |= {in_time[known]: "not counted: inside a longer one" for known in inside}
    return [one._replace(role=roles.get(place, one.role)) for place, one in enumerate(versions)]
