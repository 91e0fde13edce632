"""Rows by the thousand, from real tables: the very bytes of the rows one by one, however they are read."""

import hashlib
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from services.core.conversion import Utility
from services.core.csv_records import csv_format
from services.core.parts import HTTPS_JSON, PartFormat
from services.core.records import MeasurementRow
from services.core.schedule import Slot
from services.delivery import sending
from services.delivery.catalog_parts import CatalogStore
from services.delivery.interval_counts import IntervalCounts
from services.delivery.kept_parts import KeptParts
from services.delivery.model import JobKey, RowRange, Run, Version
from services.delivery.name_sheets import NameSheets
from services.delivery.row_lines import RowBlock
from services.delivery.row_store import SMALLEST_METER_ID, RowStore
from services.delivery.sending import Freezer
from services.platform.errors import OperatorNeeded
from services.platform.postgres import Pool
from tests.support.exports import Exports, at
from tests.support.formats import AnyFormat
from tests.support.row_oracle import csv_line, json_line

KNOWN_REVISION = 2
ODD_NAMES = [
    'Tap "A", cold', "two\nlines", "cr\rin it", "=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "Größe 東京 🌡", "plain",
    "a,b", "back\\slash", "\\N", "N/A", "'quoted'", " ",
]  # fmt: skip
ODD_VALUES = [
    None, "0", "0.004", "0.005", "0.015", "1.005", "2.675", "99999999.994999", "123456789012345678901234567890.125",
    "0.00083333333333333333", "1e-30", "1e25", "12062.5",
]  # fmt: skip

# One row after the other, each with its names looked up by itself.
ORACLE = """
SELECT m.meter_id, t.meter_type, t.utility, c.name, c.unit, m.window_start, m.resolution_minutes, c.site_id, s.name,
       m.energy_wh, m.volume
FROM measurement m
JOIN meter t ON t.meter_id = m.meter_id
LEFT JOIN LATERAL (
    SELECT name, unit, site_id FROM meter_configuration
    WHERE meter_id = m.meter_id AND valid_from <= m.window_start AND revision <= $4
    ORDER BY valid_from DESC, revision DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (
    SELECT name FROM site_description
    WHERE site_id = c.site_id AND valid_from <= m.window_start AND revision <= $4
    ORDER BY valid_from DESC, revision DESC LIMIT 1) s ON true
WHERE m.resolution_minutes = $1 AND m.window_start >= $2 AND m.window_start < $3
  AND ($5::int[] IS NULL OR c.site_id = ANY ($5))
ORDER BY m.window_start, m.meter_id
"""


def run_of(start: datetime, end: datetime, *, minutes: int, sites: Sequence[int] | None) -> tuple[Run, Version]:
    job = JobKey(1, 1)
    version = Version(
        effective_from=start, version=1, name="Job", data="meters_measurements", frequency_minutes=60,
        resolution_minutes=minutes, site_ids=None if sites is None else tuple(sites), transport="sftp",
        settings={},
    )  # fmt: skip
    return Run(job, Slot(start, end), 1, KNOWN_REVISION, False, 0, start), version


async def odd_rows(exports: Exports, chance: random.Random, minutes: int) -> None:
    """Fill four windows, in which some names, units and sites change, with odd names and values."""
    await exports.seed(meters=23, sites=3)
    await exports.close_windows(minutes, at(8), at(8) + 4 * timedelta(minutes=minutes))
    for site in (1, 2, 3):
        await exports.execute(
            "INSERT INTO site_description VALUES ($1, $2, 2, $3, 'UTC')",
            site, at(8) + timedelta(minutes=minutes * chance.randrange(4)), chance.choice(ODD_NAMES),
        )  # fmt: skip
    for meter in range(1, 24):
        for revision, start in ((1, at(7)), (2, at(8) + timedelta(minutes=minutes * chance.randrange(5))), (3, at(7))):
            await exports.execute(
                "INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse)"
                " SELECT $1, $2, $3, $4, $5, 'm3', 1 ON CONFLICT DO NOTHING",
                meter, start, revision, chance.choice(ODD_NAMES), chance.randint(1, 3),
            )  # fmt: skip
        for number in range(4):
            energy, volume = (Decimal(text) if (text := chance.choice(ODD_VALUES)) else None for _ in range(2))
            await exports.execute(
                "UPDATE measurement m SET energy_wh = CASE WHEN t.utility IN ('electricity', 'heat', 'gas') "
                "THEN $3::numeric END, volume = CASE WHEN t.utility IN ('gas', 'water', 'air') THEN $4::numeric END "
                "FROM meter t WHERE t.meter_id = m.meter_id AND m.meter_id = $1 AND m.window_start = $2",
                meter, at(8) + timedelta(minutes=minutes * number), energy, volume,
            )  # fmt: skip
    await exports.execute("DELETE FROM measurement WHERE (meter_id + extract(minute FROM window_start)::int) % 7 = 3")


async def rows_one_by_one(pool: Pool, run: Run, version: Version) -> list[MeasurementRow]:
    sites = None if version.site_ids is None else list(version.site_ids)
    async with pool.acquire() as connection:
        found = await connection.fetch(ORACLE, version.resolution_minutes, *run.slot, run.catalog_revision, sites)
    return [MeasurementRow(row[0], row[1], Utility(row[2]), *list(row)[3:]) for row in found]


@pytest.mark.parametrize("minutes", [1, 15, 60])
@pytest.mark.parametrize("sites", [None, [2], [1, 3], []])
async def test_blocks_hold_the_bytes_of_the_rows_one_by_one(
    exports: Exports, pool: Pool, minutes: int, sites: list[int] | None
) -> None:
    seed = minutes * 10 + len(sites or ())
    await odd_rows(exports, random.Random(seed), minutes)
    run, version = run_of(at(8), at(8) + 4 * timedelta(minutes=minutes), minutes=minutes, sites=sites)
    rows = await rows_one_by_one(pool, run, version)
    assert len(rows) > 10 or sites is not None
    formats: list[tuple[PartFormat, list[bytes]]] = [
        (csv_format(end, defuse=defuse), [csv_line(row, defuse=defuse) for row in rows])
        for end in ("\n", "\r\n")
        for defuse in (True, False)
    ]
    store = RowStore(pool)
    for part_format, lines in [*formats, (HTTPS_JSON, list(map(json_line, rows)))]:
        for first in range(0, len(rows), 5):
            for count in (1, 4, 100):
                place = RowRange(rows[first].measured_at, rows[first].meter_id, count)
                block = await store.block(run, version, part_format, place)
                body = part_format.assemble_block(block, 0, block.row_count)
                assert body == part_format.assemble(lines[first : first + count])
                assert block.rows(0, count) == place
        everything = await store.block(run, version, part_format, RowRange(at(8), SMALLEST_METER_ID, 1_000))
        assert everything.row_count == len(rows)


@pytest.mark.parametrize(
    ("kept_bytes", "piece_rows"), [(0, 200_000), (1_000_000, 25_000), (100_000_000, 24_000), (0, 6_000)]
)
async def test_a_long_run_is_frozen_piece_by_piece_and_renders_to_the_same_bytes(
    exports: Exports, pool: Pool, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, piece_rows: int
) -> None:
    """Over the end of a block, with parts that are cut by their size, and whichever parts were kept."""
    monkeypatch.setattr(sending, "PIECE_ROWS", piece_rows)
    await exports.seed(meters=12_000)
    await exports.close_windows(15, at(8), at(9))
    long_name = "ü" * 190
    await exports.execute("UPDATE meter_configuration SET name = $1 || meter_id WHERE meter_id > 4000", long_name)
    await exports.execute("UPDATE site_description SET name = $1", long_name)
    run, version = run_of(at(8), at(9), minutes=15, sites=None)
    rows = await rows_one_by_one(pool, run, version)
    assert len(rows) == 48_000
    cases = (
        (csv_format("\n", defuse=True), [csv_line(row, defuse=True) for row in rows]),
        (HTTPS_JSON, list(map(json_line, rows))),
    )
    for part_format, lines in cases:
        freezer = Freezer(
            RowStore(pool), CatalogStore(pool), AnyFormat(part_format), at_once=1, kept=KeptParts(kept_bytes)
        )
        parts = await freezer.parts(run, version, await IntervalCounts(pool).tally(run, version))
        assert sum(part.rows.row_count for part in parts) == len(rows)
        place = 0
        for part in parts:
            count = part.rows.row_count
            body = part_format.assemble(lines[place : place + count])
            assert (part.byte_count, part.sha256) == (len(body), hashlib.sha256(body).digest())
            assert part.rows == RowRange(rows[place].measured_at, rows[place].meter_id, count)
            assert await freezer.body(run, version, part) == body
            assert await freezer.body(run, version, part) == body
            place += count
        if part_format is HTTPS_JSON:
            assert any(part.rows.row_count < 2_000 for part in parts[:-1]), "no part was cut by its size"


class CountingStore(RowStore):
    blocks = 0

    async def block(
        self, run: Run, version: Version, part_format: PartFormat, rows: RowRange, *, are_units_put_right: bool = True
    ) -> RowBlock:
        self.blocks += 1
        return await super().block(run, version, part_format, rows, are_units_put_right=are_units_put_right)


async def test_parts_that_are_rendered_again_are_rendered_ahead(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=12_000)
    await exports.close_windows(15, at(8), at(9))
    run, version = run_of(at(8), at(9), minutes=15, sites=None)
    for part_format, count, blocks in ((csv_format("\n", defuse=True), 5, 3), (HTTPS_JSON, 24, 3)):
        store = CountingStore(pool)
        freezer = Freezer(store, CatalogStore(pool), AnyFormat(part_format), at_once=2, kept=KeptParts(0))
        parts = await freezer.parts(run, version, await IntervalCounts(pool).tally(run, version))
        assert len(parts) == count
        for part in parts:
            body = await freezer.body(run, version, part)
            assert body is not None
            assert hashlib.sha256(body).digest() == part.sha256
        assert store.blocks == blocks
        # Somebody changes what is behind the place that was rendered last: a part that differs is never given.
        assert await freezer.body(run, version, parts[0]) is not None
        await exports.execute("UPDATE measurement SET volume = 17 WHERE meter_id % 5 = 3")
        assert await freezer.body(run, version, parts[-1]) is None
        await exports.execute("UPDATE measurement SET volume = meter_id * 0.1 WHERE meter_id % 5 = 3")


async def test_names_are_forgotten_when_they_become_too_many(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=60)
    await exports.close_windows(15, at(8), at(10))
    run, version = run_of(at(8), at(10), minutes=15, sites=None)
    expected = csv_format("\n", defuse=True).assemble(
        [csv_line(row, defuse=True) for row in await rows_one_by_one(pool, run, version)]
    )
    part_format = csv_format("\n", defuse=True)
    for most in (1, 50, 100):
        store = RowStore(pool, NameSheets(most))
        for _again in range(2):
            block = await store.block(run, version, part_format, RowRange(at(8), SMALLEST_METER_ID, 1_000))
            assert part_format.assemble_block(block, 0, block.row_count) == expected


async def test_a_missing_name_is_an_operators_matter(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=3)
    await exports.close_windows(15, at(8), at(9))
    await exports.execute("DELETE FROM site_description WHERE site_id = 2")
    run, version = run_of(at(8), at(9), minutes=15, sites=None)
    with pytest.raises(OperatorNeeded, match="no name for site 2 at 2026-11-20T08:00:00"):
        await RowStore(pool).block(run, version, HTTPS_JSON, RowRange(at(8), SMALLEST_METER_ID, 10))


async def test_a_missing_name_found_on_the_way_leaves_a_sound_pool(exports: Exports, pool: Pool) -> None:
    await exports.seed(meters=3)
    await exports.close_windows(15, at(8), at(9))
    run, version = run_of(at(8), at(9), minutes=15, sites=None)
    await exports.execute("DELETE FROM site_description WHERE site_id = 2")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sending, "BLOCK_ROWS", 1)
        one_row = csv_format("\n", defuse=True)._replace(max_rows=1)
        freezer = Freezer(RowStore(pool), CatalogStore(pool), AnyFormat(one_row), at_once=1)
        tally = await IntervalCounts(pool).tally(run, version)
        sessions = "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database()"
        before: set[int] | None = None
        for _again in range(12):
            with pytest.raises(OperatorNeeded, match="no name for site 2"):
                await freezer.parts(run, version, tally)
            before = before or set(await pool.fetchval(sessions))
        assert before is not None
        assert before <= set(await pool.fetchval(sessions)), "a connection was given up"
        await exports.execute("INSERT INTO site_description VALUES (2, '-infinity', 1, 'Two', 'UTC')")
        assert len(await freezer.parts(run, version, tally)) == 12
