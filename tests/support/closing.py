"""Readings by plain SQL, and what closing must make of them, computed one reading at a time."""

import hashlib
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg

from services.core.conversion import Conversion, Utility, convert
from services.core.counting import KnownReading, close_window
from services.core.readings import ReadingVersion, newest
from services.core.registers import DEFAULT_LARGEST_SHARE, Register
from services.core.times import floor_to
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES, cut_off
from services.platform.postgres import Connection, Pool, transaction
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
CLOSED_TABLES = "measurement, meter_event, meter_register, window_closing, window_frontier, window_closed"
"""All that windowing writes."""
TOPICS = ("readings.bridge", "readings.logger")

UTILITIES = {
    1: Conversion(Utility.ELECTRICITY, Decimal("0.001")),
    2: Conversion(Utility.HEAT, Decimal("0.25")),
    3: Conversion(Utility.GAS, Decimal("0.01"), Decimal("0.9626"), Decimal("11.2345")),
    4: Conversion(Utility.WATER, Decimal("0.5")),
    5: Conversion(Utility.AIR, Decimal("0.1")),
}
"""The meters of `seed_meters`, one of each utility."""

_offsets = itertools.count()


class Row(NamedTuple):
    """A measurement, without what every row of a window has in common."""

    resolution_minutes: int
    window_start: datetime
    meter_id: int
    intervals_present: int
    intervals_expected: int
    pulses: int
    energy_wh: Decimal | None
    volume: Decimal | None
    flags: int = 0
    register_start: int | None = None
    register_start_at: datetime | None = None
    register_end: int | None = None
    register_end_at: datetime | None = None


class TellingEvent(NamedTuple):
    """An event of one meter's window."""

    resolution_minutes: int
    window_start: datetime
    meter_id: int
    kind: str
    detail: dict[str, Any]


def version(meter_id: int, measured_at: datetime, value: int, **more: Any) -> ReadingVersion:
    """Return a reading of one minute that arrives ten seconds after its interval, unless `more` says otherwise."""
    fields: dict[str, Any] = {
        "measured_at": measured_at,
        "value": value,
        "source_offset": next(_offsets),
        "meter_id": meter_id,
        "revision": 0,
        "source_partition": 0,
        "source_place": 0,
        "interval_minutes": 1,
        "source_topic": 1,
        "is_register": False,
        **more,
    }
    ends = measured_at + timedelta(minutes=fields["interval_minutes"])
    fields.setdefault("arrived_at", ends + timedelta(seconds=10))
    return ReadingVersion(**fields)


async def seed_meters(
    url: str, meters: dict[int, Conversion], cadence_minutes: int = 1, moduli: dict[int, int] | None = None
) -> None:
    """Register meters of one organization, with these conversions from the beginning of time, at revision 1."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "UPDATE catalog_revision SET revision = 1;"
            "INSERT INTO organization (organization_id, name, revision) VALUES (1, 'Test', 1);"
            "INSERT INTO site (site_id, organization_id, revision) VALUES (1, 1, 1);"
        )
        for meter_id, conversion in meters.items():
            await connection.execute(
                "INSERT INTO meter (meter_id, organization_id, meter_type, utility, revision) "
                "VALUES ($1, 1, $2, $2, 1)",
                meter_id,
                conversion.utility.value,
            )
        for meter_id, conversion in meters.items():
            modulus = (moduli or {}).get(meter_id)
            await configure(connection, meter_id, conversion, cadence_minutes=cadence_minutes, modulus=modulus)
    finally:
        await connection.close()


async def configure(
    connection: "asyncpg.Connection[asyncpg.Record] | Connection",
    meter_id: int,
    conversion: Conversion,
    *,
    valid_from: datetime | None = None,
    revision: int = 1,
    cadence_minutes: int = 1,
    modulus: int | None = None,
    unit: str | None = None,
) -> None:
    """Add a configuration, valid from the beginning of time unless told otherwise."""
    await connection.execute(
        "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
        "normalization_factor, calorific_value, cadence_minutes, register_modulus) "
        "VALUES ($1, coalesce($2, '-infinity'::timestamptz), $3, 'Meter', 1, $4, $5, $6, $7, $8, $9)",
        meter_id,
        valid_from,
        revision,
        unit or conversion.utility.units[0],
        conversion.units_per_pulse,
        conversion.normalization_factor,
        conversion.calorific_value,
        cadence_minutes,
        modulus,
    )


async def store_versions(url: str, versions: Iterable[ReadingVersion]) -> None:
    """Store readings as ingest leaves them: the newest version of each in `reading`, the others superseded."""
    by_key: dict[tuple[int, datetime], list[ReadingVersion]] = defaultdict(list)
    for item in versions:
        by_key[item.meter_id, item.measured_at].append(item)
    ranked = [sorted(found, key=lambda item: item.order) for found in by_key.values()]
    winners = [found[-1] for found in ranked]
    losers = [item for found in ranked for item in found[:-1]]
    connection = await asyncpg.connect(url)
    try:
        for day in sorted({item.measured_at.astimezone(UTC).date() for item in winners}):
            for table in ("reading", "reading_superseded"):
                await connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table}_{day:%Y%m%d} PARTITION OF {table} "
                    f"FOR VALUES FROM ('{day}Z') TO ('{day + timedelta(days=1)}Z')"
                )
        columns = ReadingVersion._fields
        await connection.copy_records_to_table("reading", records=winners, columns=columns)
        await connection.copy_records_to_table("reading_superseded", records=losers, columns=columns)
    finally:
        await connection.close()


async def store_progress(
    url: str, watermark: datetime | None, *, first_arrival: datetime, topic: str = "readings.logger", partition: int = 0
) -> None:
    """Say that ingest has stored a partition up to `watermark`."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "INSERT INTO ingest_progress (topic, partition, next_offset, watermark, first_arrival, epoch, owner) "
            "VALUES ($1, $2, 17, $3, $4, 1, 'test') "
            "ON CONFLICT (topic, partition) DO UPDATE SET watermark = excluded.watermark",
            topic,
            partition,
            watermark,
            first_arrival,
        )
    finally:
        await connection.close()


def expected_rows(
    versions: Iterable[ReadingVersion],
    resolution_minutes: int,
    grace: timedelta,
    meters: dict[int, Conversion],
    cadence_minutes: int = 1,
    moduli: dict[int, int] | None = None,
) -> list[Row]:
    """Return the measurements of one resolution, by the words of the contract."""
    return expected(versions, resolution_minutes, grace, meters, cadence_minutes, moduli)[0]


def expected(
    versions: Iterable[ReadingVersion],
    resolution_minutes: int,
    grace: timedelta,
    meters: dict[int, Conversion],
    cadence_minutes: int = 1,
    moduli: dict[int, int] | None = None,
) -> tuple[list[Row], list[TellingEvent]]:
    """Return the measurements of one resolution and the events of its windows, meter by meter, window by window."""
    by_key: dict[tuple[int, datetime], list[ReadingVersion]] = defaultdict(list)
    for item in versions:
        by_key[item.meter_id, item.measured_at].append(item)
    windows: dict[tuple[datetime, int], list[KnownReading]] = defaultdict(list)
    for (meter_id, measured_at), found in by_key.items():
        start = floor_to(measured_at, timedelta(minutes=resolution_minutes))
        known = newest(found, as_of=cut_off(start, resolution_minutes, grace))
        if known is not None and known.interval_minutes <= resolution_minutes:
            reading = KnownReading(measured_at, known.interval_minutes, known.value, known.is_register)
            windows[start, meter_id].append(reading)
    rows: list[Row] = []
    events: list[TellingEvent] = []
    registers: dict[int, Register | None] = {}
    wanted = max(resolution_minutes // cadence_minutes, 1)
    for (start, meter_id), readings in sorted(windows.items()):
        closed = close_window(
            start,
            resolution_minutes,
            readings,
            registers.get(meter_id),
            (moduli or {}).get(meter_id),
            DEFAULT_LARGEST_SHARE,
        )
        registers[meter_id] = closed.register
        events.extend(
            TellingEvent(resolution_minutes, start, meter_id, event.kind.value, event.detail) for event in closed.events
        )
        content = closed.content
        if content is None:
            continue
        begin, end = content.start or (None, None), content.end or (None, None)
        rows.append(
            Row(
                resolution_minutes,
                start,
                meter_id,
                content.covered_minutes * wanted // resolution_minutes,
                wanted,
                content.pulses,
                *convert(content.pulses, meters[meter_id]),
                content.flags,
                begin[1],
                begin[0],
                end[1],
                end[0],
            )
        )
    return rows, sorted(events, key=lambda event: event[:4])


async def stored_events(url: str, resolution_minutes: int) -> list[TellingEvent]:
    """Return the events of one resolution as they are in the database."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT resolution_minutes, window_start, meter_id, kind, detail FROM meter_event "
            "WHERE resolution_minutes = $1",
            resolution_minutes,
        )
    finally:
        await connection.close()
    return sorted(
        (TellingEvent(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows), key=lambda event: event[:4]
    )


async def stored_rows(url: str, resolution_minutes: int) -> list[Row]:
    """Return the measurements of one resolution as they are in the database."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            f"SELECT {', '.join(Row._fields)} FROM measurement WHERE resolution_minutes = $1 "
            "ORDER BY window_start, meter_id",
            resolution_minutes,
        )
    finally:
        await connection.close()
    return [Row(*row) for row in rows]


def canonical_sha256(rows: Iterable[Row], organization_id: int = 1) -> bytes:
    """Return the hash that the closing of these rows, of one window and bucket, must record."""
    lines = [
        f"{row.meter_id}|{organization_id}|{row.intervals_present}|{row.intervals_expected}|{row.pulses}"
        f"|{_text(row.energy_wh)}|{_text(row.volume)}{_rest_of_line(row)}"
        for row in sorted(rows, key=lambda row: row.meter_id)
    ]
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _rest_of_line(row: Row) -> str:
    if row.register_start_at is None or row.register_end_at is None:
        return f"|{row.flags}" if row.flags else ""
    began, ended = (int(instant.timestamp()) for instant in (row.register_start_at, row.register_end_at))
    return f"|{row.flags}|{row.register_start}|{began}|{row.register_end}|{ended}"


def _text(number: Decimal | None) -> str:
    if number is None:
        return ""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def store_of(pool: Pool, **options: Any) -> WindowStore:
    """Return a store on these topics, with settings of its own."""
    return WindowStore(pool, WindowingSettings(**options), TOPICS)


async def begin(pool: Pool, url: str, watermark: datetime, first: datetime = T0, **options: Any) -> WindowStore:
    """Say that everything before `watermark` is stored, and open the windows at `first`."""
    store = store_of(pool, **options)
    await store_progress(url, watermark, first_arrival=first)
    await store.open({resolution: first.replace(minute=0) for resolution in RESOLUTIONS_MINUTES})
    return store


async def close_all(store: WindowStore, until: datetime) -> int:
    """Advance every bucket until it stands still; returns how often one was advanced."""
    count = 0
    for key in sorted(store.keys):
        reached = await store.advance(key, until)
        while reached is not None and reached < until:
            count += 1
            before, reached = reached, await store.advance(key, until)
            if before == reached:
                break
    return count


async def assert_closed_as_expected(
    url: str,
    versions: list[ReadingVersion],
    meters: dict[int, Conversion] | None = None,
    cadence_minutes: int = 1,
    moduli: dict[int, int] | None = None,
) -> None:
    """Compare the measurements and events of every resolution with what the contract says."""
    for resolution in RESOLUTIONS_MINUTES:
        rows, events = expected(versions, resolution, DEFAULT_GRACE, meters or UTILITIES, cadence_minutes, moduli)
        assert await stored_rows(url, resolution) == rows
        assert await stored_events(url, resolution) == events


async def closings(pool: Pool) -> list[dict[str, Any]]:
    """Return the proofs of all closed windows, without the time of closing."""
    async with transaction(pool) as connection:
        rows = await connection.fetch(
            "SELECT resolution_minutes, window_start, bucket, cut_off, catalog_revision, row_count, sha256, offsets "
            "FROM window_closing ORDER BY 1, 2, 3"
        )
    return [dict(row) for row in rows]


def many_versions(seed: int, minutes: int = 150) -> list[ReadingVersion]:
    """Return readings in time, late, corrected in time and after it, repeated, out of order, and missing."""
    rng = random.Random(seed)
    versions = []
    for minute in range(minutes):
        for meter in UTILITIES:
            measured_at = T0 + minute * MINUTE
            for revision in range(rng.choice([0, 1, 1, 1, 1, 2, 3])):
                delay = rng.choice([1, 60, 240, 299, 300, 301, 600, 3600, 4200])
                arrived = measured_at + MINUTE + timedelta(seconds=delay)
                versions.append(
                    version(
                        meter,
                        measured_at,
                        rng.randrange(1000),
                        arrived_at=arrived,
                        revision=rng.choice([0, 0, revision]),
                        source_topic=rng.randrange(2),
                        source_partition=rng.randrange(3),
                    )
                )
    return versions
