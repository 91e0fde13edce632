"""Measurements and readings over HTTP: pages, sites, as of, CSV; held against all rows in the database."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import msgspec
import pytest

from services.api.http.decoding import plain
from services.api.measurement_json import FLAGS
from tests.support.api import Api, running_api
from tests.support.seed import seed_catalog

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)
RANGE = "from=2026-11-20T10:00:00Z&until=2026-11-20T14:00:00Z"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """
        CREATE TABLE measurement_x PARTITION OF measurement_60m FOR VALUES FROM ('2026-11-20') TO ('2026-11-22');
        CREATE TABLE reading_x PARTITION OF reading FOR VALUES FROM ('2026-11-20') TO ('2026-11-22');
        CREATE TABLE reading_superseded_x PARTITION OF reading_superseded
            FOR VALUES FROM ('2026-11-20') TO ('2026-11-22');
        INSERT INTO window_closed VALUES (60, '2026-11-20T10:00Z', '2026-11-20T14:00Z');
        INSERT INTO window_frontier SELECT 60, bucket, '2026-11-20T14:00Z' FROM generate_series(0, 7) bucket;
        UPDATE catalog_revision SET revision = 2;
        INSERT INTO site (site_id, organization_id, revision) VALUES (2, 1, 2);
        INSERT INTO site_description VALUES (2, '-infinity', 2, 'South', 'UTC');
        INSERT INTO meter_configuration (meter_id, valid_from, revision, name, site_id, unit, units_per_pulse)
        VALUES (3, '2026-11-20T12:00Z', 2, 'Moved', 2, 'kWh', 0.001);
        """
    )
    for hour in range(4):
        start = T0 + timedelta(hours=hour)
        await connection.execute(
            "INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present, "
            "intervals_expected, pulses, energy_wh) SELECT $1, n, 1, 60, 60, 60, n, n * 1.005 "
            "FROM generate_series(1, 10) n",
            start,
        )
        await connection.execute(
            "INSERT INTO window_closing (resolution_minutes, window_start, bucket, cut_off, catalog_revision, "
            "row_count, sha256, offsets) "
            "SELECT 60, $1::timestamptz, bucket, $1::timestamptz + interval '65 minutes', 1, 1, '', '{}' "
            "FROM generate_series(0, 7) bucket",
            start,
        )
    for table, value, late in (("reading", 7, 90), ("reading_superseded", 5, 1)):
        await connection.execute(
            f"INSERT INTO {table} (measured_at, arrived_at, value, source_offset, meter_id, revision, "
            "source_partition, source_place, interval_minutes, source_topic, is_register) "
            "SELECT $1, $2, $3, 1, n, 0, 0, 0, 1, 1, n = 2 "
            "FROM generate_series(1, 10) n",
            *(T0, T0 + timedelta(minutes=late), value),
        )
    await connection.close()
    async with running_api(database_url, tmp_path) as running:
        yield running


async def _pages(api: Api, token: str, path: str) -> list[dict[str, object]]:
    found, link = [], path
    while link:
        got = await api.get(link, token)
        assert got.status == 200, got
        found += got.json["measurements" if "measurements" in path else "readings"]
        header = got.headers.get("Link")
        link = header[1 : header.index(">")] if header else ""
    return found


async def test_every_window_comes_once_in_order(api: Api) -> None:
    token = await api.token(1, "viewer")
    for limit in (1, 7, 10, 11, 1000):
        rows = await _pages(api, token, f"/v1/measurements?resolution=60&{RANGE}&limit={limit}")
        keys = [(row["window_start"], row["meter_id"]) for row in rows]
        assert keys == [(f"2026-11-20T{10 + hour}:00:00Z", meter) for hour in range(4) for meter in range(1, 11)]
    first = rows[0]
    assert (first["energy_wh"], first["power_w"], first["volume"], first["meter_name"]) == (
        "1.005",
        "1.005",
        None,
        "Meter 1",
    )
    got = await api.get(f"/v1/measurements?resolution=60&{RANGE}&limit=1", token)
    assert got.json["closed_until"] == "2026-11-20T14:00:00Z"


async def test_meters_and_sites_choose(api: Api) -> None:
    token = await api.token(1, "viewer")
    two = await _pages(api, token, f"/v1/measurements?resolution=60&{RANGE}&meter_id=3,4&limit=3")
    assert [row["meter_id"] for row in two] == [3, 4] * 4
    south = await _pages(api, token, f"/v1/measurements?resolution=60&{RANGE}&site_id=2")
    assert [(row["meter_id"], row["window_start"][11:13], row["meter_name"]) for row in south] == [  # type: ignore[index]
        (3, "12", "Moved"),
        (3, "13", "Moved"),
    ]
    held = await api.token(1, "viewer", site_ids=[2])
    assert await _pages(api, held, f"/v1/measurements?resolution=60&{RANGE}") == south
    assert (await api.get(f"/v1/measurements?resolution=60&{RANGE}&meter_id=4", held)).status == 404
    assert (await api.get(f"/v1/measurements?resolution=60&{RANGE}&site_id=1", held)).status == 404


async def test_as_of_shows_what_was_closed_and_known_then(api: Api) -> None:
    token = await api.token(1, "viewer")
    then = await _pages(api, token, f"/v1/measurements?resolution=60&{RANGE}&meter_id=3&as_of=2026-11-20T13:05:00Z")
    assert [(row["window_start"], row["meter_name"]) for row in then] == [
        ("2026-11-20T10:00:00Z", "Meter 3"),
        ("2026-11-20T11:00:00Z", "Meter 3"),
        ("2026-11-20T12:00:00Z", "Meter 3"),
    ]


async def test_json_is_written_as_any_encoder_would(api: Api, database_url: str) -> None:
    name = 'Gr\u00fc\u00df\u00e9 "\\/\t\x7f\u2028\U0001f600'
    amounts = ("0", "0.000", "100", "1200.50", "0.0000001", "123456789012345678901234567890.1234567890", None)
    connection = await asyncpg.connect(database_url)
    for place in ("meter_configuration SET name", "site_description SET name", "meter SET meter_type"):
        await connection.execute(f"UPDATE {place} = $1", name)
    for flags in range(16):
        await connection.execute(
            "UPDATE measurement SET flags = $1, energy_wh = $2, volume = $3, pulses = $4 "
            "WHERE meter_id = $5 AND window_start = $6",
            *(flags, *(_number(amounts[(flags + more) % len(amounts)]) for more in (0, 3)), 2**62 + flags),
            *(flags % 8 + 1, T0 + timedelta(hours=flags // 8)),
        )
    rows = await connection.fetch("SELECT * FROM measurement ORDER BY window_start, meter_id")
    await connection.close()
    token = await api.token(1, "viewer")
    got = await api.get(f"/v1/measurements?resolution=60&{RANGE}&limit=40", token)
    expected = [
        {
            "window_start": row["window_start"].isoformat().replace("+00:00", "Z"),
            "resolution_minutes": 60,
            "meter_id": row["meter_id"],
            "meter_type": name,
            "meter_name": name,
            "meter_unit": "kWh",
            "site_id": 2 if row["meter_id"] == 3 and row["window_start"].hour >= 12 else 1,
            "site_name": name,
            "energy_wh": plain(row["energy_wh"]),
            "power_w": plain(row["energy_wh"]),
            "volume": plain(row["volume"]),
            "flow_per_hour": plain(row["volume"]),
            "pulses": row["pulses"],
            "intervals_present": 60,
            "intervals_expected": 60,
            "flags": [name for bit, name in FLAGS.items() if row["flags"] & bit],
        }
        for row in rows
    ]
    whole = {"measurements": expected, "closed_until": "2026-11-20T14:00:00Z", "next_cursor": None}
    assert got.content == msgspec.json.encode(whole)
    of_few = await api.get(f"/v1/measurements?resolution=60&{RANGE}&meter_id=1,2,3,4,5,6,7,8,9,10", token)
    assert of_few.content == got.content
    rates = await api.get(f"/v1/measurements?resolution=5&{RANGE}", token)
    assert rates.content == b'{"measurements":[],"closed_until":null,"next_cursor":null}'


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


async def test_rates_are_by_the_hour(api: Api, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE measurement_y PARTITION OF measurement_5m FOR VALUES FROM ('2026-11-20') TO ('2026-11-22');"
        "INSERT INTO measurement (window_start, meter_id, organization_id, resolution_minutes, intervals_present, "
        "intervals_expected, pulses, energy_wh, volume) VALUES ('2026-11-20T10:05Z', 1, 1, 5, 5, 5, 9, 0.25, 10.10)"
    )
    await connection.close()
    got = await api.get(f"/v1/measurements?resolution=5&{RANGE}", await api.token(1, "viewer"))
    (row,) = got.json["measurements"]
    assert (row["power_w"], row["volume"], row["flow_per_hour"]) == ("3", "10.1", "121.2")


async def test_csv_is_that_of_an_export(api: Api) -> None:
    token = await api.token(1, "viewer")
    got = await api.get(f"/v1/measurements?resolution=60&{RANGE}&meter_id=1&limit=2&format=csv", token)
    assert got.headers["Content-Type"].startswith("text/csv")
    lines = got.content.decode().split("\r\n")
    assert lines[1] == "1,Electricity,Meter 1,kWh,2026-11-20T10:00:00Z,60,1,North depot,1.01,1.01,N/A,N/A"
    assert len(lines) == 4
    assert 'rel="next"' in got.headers["Link"]


async def test_readings_newest_and_as_of(api: Api) -> None:
    token = await api.token(1, "viewer")
    newest = await _pages(api, token, f"/v1/readings?{RANGE}&site_id=1&limit=4")
    assert [(row["meter_id"], row["pulses"], row["register"]) for row in newest] == [
        (meter, None if meter == 2 else 7, 7 if meter == 2 else None) for meter in range(1, 11)
    ]
    early = await _pages(api, token, f"/v1/readings?{RANGE}&meter_id=1&as_of=2026-11-20T10:30:00Z")
    assert [(row["pulses"], row["arrived_at"]) for row in early] == [(5, "2026-11-20T10:01:00Z")]
    assert await _pages(api, token, f"/v1/readings?{RANGE}&meter_id=1&as_of=2026-11-20T10:00:30Z") == []
    csv = await api.get(f"/v1/readings?{RANGE}&meter_id=2&format=csv", token)
    assert csv.content.decode().split("\r\n")[1] == "2,2026-11-20T10:00:00Z,1,,7,0,2026-11-20T11:30:00.000Z"


async def test_a_thousand_meters_may_be_named(api: Api) -> None:
    token = await api.token(1, "viewer")
    ids = ",".join(str(2**31 - number) for number in range(1, 1_001))
    got = await api.get(
        f"/v1/measurements?from=2026-11-20T10:00:00Z&until=2026-11-20T14:00:00Z&resolution=60&meter_id={ids}", token
    )
    assert (got.status, got.json["code"]) == (404, "not_found")
