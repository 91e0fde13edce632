"""Somebody wrote by hand into a window that is open: its bucket waits, nothing else does, and nobody closes over it."""

import asyncio
import json
from datetime import datetime
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from services.cli.show import Answer
from services.cli.window_status import resolution_statuses, show_status
from services.core.messages import WindowsDue
from services.platform.health import Health
from services.platform.kafka import Producer
from services.platform.metrics import REGISTRY
from services.platform.postgres import Patience, Pool, transaction
from services.platform.settings import load
from services.windowing.announcements import BucketKey
from services.windowing.closer import Closer
from services.windowing.settings import WindowingSettings
from services.windowing.status_queries import Occupied, Standing, occupied
from services.windowing.store import WindowStore
from tests.support.closing import (
    MINUTE,
    T0,
    UTILITIES,
    assert_closed_as_expected,
    begin,
    seed_meters,
    store_versions,
    version,
)

UNTIL = T0 + 60 * MINUTE
SPOT = T0 + 7 * MINUTE
VERSIONS = [version(meter, T0 + n * MINUTE, n) for n in range(30) for meter in (1, 2, 3)]
# Their registers begin there, of which an event tells.
VERSIONS += [version(4, T0 + n * MINUTE, 100 + n, is_register=True) for n in range(7, 30)]
PLANTED = {
    "measurement": "(window_start, meter_id, organization_id, resolution_minutes, intervals_present, "
    "intervals_expected, pulses) VALUES ($1, 2, 1, 1, 1, 1, 99)",
    "meter_event": "VALUES (1, $1, 1, 4, 'registers_begin', '{}')",
    "window_closing": "(resolution_minutes, window_start, bucket, cut_off, catalog_revision, row_count, sha256, "
    "offsets) VALUES (1, $1, 3, $1, 1, 0, '', '{}')",
}
BUCKETS = {"measurement": 2, "meter_event": 4, "window_closing": 3}


class Nobody:
    """Takes announcements and hears none."""

    async def send(self, topic: str, value: bytes, **options: Any) -> None:
        """Do nothing."""


async def announce_all(closer: Closer, store: WindowStore) -> None:
    for key in sorted(store.keys):
        await closer.close(WindowsDue(key.resolution_minutes, key.bucket, UNTIL))


def attempts() -> float:
    return REGISTRY.get_sample_value("meterpost_windows_occupied_total", {"resolution": "1"}) or 0


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("table", PLANTED)
async def test_its_bucket_stops_there_and_goes_on_once_it_is_deleted(
    pool: Pool, database_url: str, table: str, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.windowing.store._ROWS_WORTH_SHARING", 0)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, VERSIONS)
    options: dict[str, Any] = {"closing_connections": connections}
    settings = WindowingSettings(**options)
    store = await begin(pool, database_url, UNTIL + 10 * MINUTE, **options)
    await store.advance(BucketKey(1, 0), T0 + MINUTE)  # makes the partition
    async with transaction(pool) as connection:
        await connection.execute(f"INSERT INTO {table} {PLANTED[table]}", SPOT)
    before, bucket = attempts(), BUCKETS[table]
    closer = Closer(settings, store, cast("Producer", Nobody()), Patience(Health(), asyncio.Event()))
    with capture_logs() as logs:
        await announce_all(closer, store)
        await announce_all(closer, store)
    assert await store.frontiers() == dict.fromkeys(store.keys, UNTIL) | {BucketKey(1, bucket): SPOT}
    assert attempts() == before + 2
    [told] = [entry for entry in logs if entry["event"] == "window_occupied"]
    assert (told["resolution_minutes"], told["bucket"], told["log_level"]) == (1, bucket, "error")
    assert "2026-11-20 10:07:00+00" in told["error"]
    meter = None if table == "window_closing" else bucket
    async with transaction(pool) as connection:
        assert await occupied(connection) == [(1, bucket, SPOT, table, meter)]
        deleted = await connection.execute(
            f"DELETE FROM {table} WHERE resolution_minutes = 1 AND window_start = $1 "
            f"AND {'meter_id' if meter else 'bucket'} = $2",
            *(SPOT, bucket),
        )
        assert (deleted, await occupied(connection)) == ("DELETE 1", [])
    with capture_logs() as logs:
        await announce_all(closer, store)
    assert [entry["event"] for entry in logs if "occupied" in entry["event"]] == ["window_occupied_no_longer"]
    assert attempts() == before + 2
    assert set((await store.frontiers()).values()) == {UNTIL}
    await assert_closed_as_expected(database_url, VERSIONS)


async def test_on_the_way_to_it_windows_are_closed_one_by_one_turn_after_turn(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each turn would begin with closing all that is due, in vain."""
    monkeypatch.setattr("services.windowing.closer.TURN_SECONDS", 0)
    await seed_meters(database_url, UTILITIES)
    await store_versions(database_url, VERSIONS)
    store = await begin(pool, database_url, UNTIL + 10 * MINUTE)
    key = BucketKey(1, BUCKETS["measurement"])
    await store.advance(BucketKey(1, 0), T0 + MINUTE)
    async with transaction(pool) as connection:
        await connection.execute(f"INSERT INTO measurement {PLANTED['measurement']}", SPOT)
    closer = Closer(load(WindowingSettings), store, cast("Producer", Nobody()), Patience(Health(), asyncio.Event()))
    advance, one_by_one = store.advance, []

    async def noted(key: BucketKey, due: datetime, *, is_one_window: bool) -> datetime | None:
        one_by_one.append(is_one_window)
        return await advance(key, due, is_one_window=is_one_window)

    monkeypatch.setattr(store, "advance", noted)
    with capture_logs() as logs:
        for _turn in range(8):
            await closer.close(WindowsDue(1, key.bucket, UNTIL))
        # An older announcement, which another worker made, moves nothing and says nothing of the window.
        await closer.close(WindowsDue(1, key.bucket, SPOT))
        await closer.close(WindowsDue(1, key.bucket, UNTIL))
    assert one_by_one == [False] + [True] * 10
    assert [entry["event"] for entry in logs if "occupied" in entry["event"]] == ["window_occupied"]
    assert (await store.frontiers())[key] == SPOT


def test_the_status_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = resolution_statuses([Standing(5, T0, T0, T0, 5 * MINUTE, None)], {}, {})
    held = [Occupied(5, 3, SPOT, "measurement", 11), Occupied(5, 4, SPOT, "window_closing", None)]
    show_status(Answer(as_json=False), statuses, [], [], {}, None, held)
    said = " ".join(capsys.readouterr().out.split())
    assert "the window of 5 minutes from 2026-11-20T10:07:00Z on is open" in said
    assert "measurement holds something of meter 11 in it already" in said
    assert "window_closing holds something in it already" in said
    assert "bucket 4 of these windows closes no further" in said
    show_status(Answer(as_json=True), statuses, [], [], {}, None, held)
    told = json.loads(capsys.readouterr().out)["occupied"]
    assert [(one["bucket"], one["in_table"], one["meter_id"]) for one in told] == [
        (3, "measurement", 11),
        (4, "window_closing", None),
    ]
