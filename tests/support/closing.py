"""Readings by plain SQL, and what closing must make of them, computed one reading at a time."""

import hashlib
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg

from services.core.conversion import Conversion, Utility, convert
from services.core.readings import ReadingVersion, newest
from services.core.times import floor_to
from services.core.windows import DEFAULT_GRACE, RESOLUTIONS_MINUTES, cut_off
from services.platform.postgres import Connection, Pool, transaction
from services.windowing.settings import WindowingSettings
from services.windowing.store import WindowStore

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
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


async def seed_meters(url: str, meters: dict[int, Conversion], cadence_minutes: int = 1) -> None:
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
            await configure(connection, meter_id, conversion, cadence_minutes=cadence_minutes)
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
) -> None:
    """Add a configuration, valid from the beginning of time unless told otherwise."""
    await connection.execute(
        "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse, "
        "normalization_factor, calorific_value, cadence_minutes) "
        "VALUES ($1, coalesce($2, '-infinity'::timestamptz), $3, 'Meter', 1, $4, $5, $6, $7, $8)",
        meter_id,
        valid_from,
        revision,
        conversion.utility.units[0],
        conversion.units_per_pulse,
        conversion.normalization_factor,
        conversion.calorific_value,
        cadence_minutes,
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
) -> list[Row]:
    """Return the measurements of one resolution, by the words of the contract."""
    by_key: dict[tuple[int, datetime], list[ReadingVersion]] = defaultdict(list)
    for item in versions:
        by_key[item.meter_id, item.measured_at].append(item)
    sums: dict[tuple[datetime, int], list[ReadingVersion]] = defaultdict(list)
    for (meter_id, measured_at), found in by_key.items():
        start = floor_to(measured_at, timedelta(minutes=resolution_minutes))
        known = newest(found, as_of=cut_off(start, resolution_minutes, grace))
        if known is not None and known.interval_minutes <= resolution_minutes and not known.is_register:
            sums[start, meter_id].append(known)
    rows = []
    for (start, meter_id), members in sorted(sums.items()):
        pulses = sum(item.value for item in members)
        quantity = convert(pulses, meters[meter_id])
        wanted = max(resolution_minutes // cadence_minutes, 1)
        present = sum(item.interval_minutes for item in members) * wanted // resolution_minutes
        rows.append(Row(resolution_minutes, start, meter_id, present, wanted, pulses, *quantity))
    return rows


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
        f"|{_text(row.energy_wh)}|{_text(row.volume)}"
        for row in sorted(rows, key=lambda row: row.meter_id)
    ]
    return hashlib.sha256("\n".join(lines).encode()).digest()


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
    url: str, versions: list[ReadingVersion], meters: dict[int, Conversion] | None = None, cadence_minutes: int = 1
) -> None:
    """Compare the measurements of every resolution with what the contract says."""
    for resolution in RESOLUTIONS_MINUTES:
        expected = expected_rows(versions, resolution, DEFAULT_GRACE, meters or UTILITIES, cadence_minutes)
        assert await stored_rows(url, resolution) == expected


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
