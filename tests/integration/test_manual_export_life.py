"""What happens to manual exports between the request and the end of their files. On a real PostgreSQL."""

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from services.api.manual_exports import ExportRefusedError, TooManyExportsError, cancel_export, list_exports
from services.core.manual_export import ExportFormat, WhenFull
from services.platform.errors import Superseded, UserError
from services.platform.postgres import transaction
from tests.support.closing import (
    MINUTE,
    T0,
    many_versions,
    store_progress,
    store_versions,
    version,
)
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, wanted_export

HOUR = timedelta(hours=1)
END = T0 + 3 * HOUR


async def test_a_zombie_records_nothing(exporting: Exporting, database_url: str) -> None:
    await store_versions(database_url, many_versions(1))
    await exporting.ask(wanted_export(T0, END, 5))
    zombie = await exporting.store.claim(exporting.clock.now())
    assert zombie is not None
    loaded = await exporting.store.load(zombie)
    assert isinstance(exporting.clock, TurnedClock)
    exporting.clock.ahead = timedelta(minutes=5)
    heir = await exporting.store.claim(exporting.clock.now())
    assert heir is not None
    assert (heir.key, heir.epoch) == (zombie.key, zombie.epoch + 1)
    with pytest.raises(Superseded):
        await exporting.maker.make_next(zombie, loaded)
    await exporting.worker.work(heir)
    assert (await exporting.find(heir.key.export_id)).state == "done"


async def test_cancelling(exporting: Exporting, database_url: str) -> None:
    await store_versions(database_url, many_versions(1))
    export = await exporting.ask(wanted_export(T0, END, 5))
    await exporting.begin_with(export, 5)
    claim = await exporting.store.claim(exporting.clock.now())
    assert claim is not None
    await exporting.maker.make_next(claim, await exporting.store.load(claim))
    waiting = await exporting.ask(wanted_export(T0, END, 5))
    async with transaction(exporting.pool) as connection:
        asked = await cancel_export(connection, 1, export.export_id, "boss")
        never_begun = await cancel_export(connection, 1, waiting.export_id, "boss")
    assert (asked.state, asked.is_cancelling, never_begun.state) == ("running", True, "cancelled")
    await exporting.store.release(claim, exporting.clock.now())
    assert await exporting.work() == 1
    assert (await exporting.find(export.export_id)).state == "cancelled"
    await exporting.sweeper.sweep()
    assert [one for one in exporting.folder.rglob("*") if one.is_file()] == []
    done = await exporting.ask(wanted_export(T0, END, 5))
    await exporting.work()
    async with transaction(exporting.pool) as connection:
        with pytest.raises(UserError, match="is done: there is nothing to cancel"):
            await cancel_export(connection, 1, done.export_id, "boss")


async def test_three_at_a_time(exporting: Exporting, database_url: str) -> None:
    await store_versions(database_url, many_versions(1))
    wanted = wanted_export(T0, END, 5)
    ids = [(await exporting.ask(wanted)).export_id for _ in range(3)]
    with pytest.raises(TooManyExportsError, match=f"and {ids[0]}, {ids[1]}, {ids[2]} are not finished: wait for one"):
        await exporting.ask(wanted)
    fourth = await exporting.ask(wanted, when_full=WhenFull.WAIT)
    another = await exporting.ask(wanted, user="else@test")
    claims = [await exporting.store.claim(exporting.clock.now()) for _ in range(5)]
    assert [claim.key.export_id if claim else None for claim in claims] == [*ids, another.export_id, None]
    assert (await exporting.find(fourth.export_id)).state == "waiting"
    assert claims[0] is not None
    await exporting.worker.work(claims[0])
    claim = await exporting.store.claim(exporting.clock.now())
    assert claim is not None
    assert claim.key.export_id == fourth.export_id


async def test_a_file_is_removed_after_its_time(exporting: Exporting, database_url: str) -> None:
    await store_versions(database_url, many_versions(1))
    await exporting.file(wanted_export(T0, END, 5))
    await exporting.sweeper.sweep()
    [file] = [one for one in exporting.folder.rglob("*") if one.is_file()]
    assert isinstance(exporting.clock, TurnedClock)
    exporting.clock.ahead = timedelta(hours=47)
    await exporting.sweeper.sweep()
    assert file.exists()
    exporting.clock.ahead = timedelta(hours=49)
    await exporting.sweeper.sweep()
    assert not file.exists()
    async with transaction(exporting.pool) as connection:
        [export] = await list_exports(connection, 1, limit=9)
        assert await list_exports(connection, 2, limit=9) == []
    assert export.state == "expired"
    assert export.sha256 is not None


@pytest.mark.parametrize("damage", ["lost", "changed"])
async def test_a_chunk_that_the_store_damaged_is_made_anew(
    exporting: Exporting, database_url: str, damage: str
) -> None:
    versions = many_versions(1)
    await store_versions(database_url, versions)
    wanted = wanted_export(T0, END, 5)
    export = await exporting.ask(wanted)
    await exporting.begin_with(export, 60)
    claim = await exporting.store.claim(exporting.clock.now())
    assert claim is not None
    await exporting.maker.make_next(claim, await exporting.store.load(claim))
    await exporting.store.release(claim, exporting.clock.now())
    [file] = [one for one in exporting.folder.rglob("*") if one.is_file()]
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-2] + b"9\n")
    await exporting.work()
    assert await exporting.content(export.export_id) == rendered(expected_export(versions, wanted), ExportFormat.CSV)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resolution_minutes": 7}, "the resolution is 7 minutes; there are 1, 5, 15, 60: choose one of them"),
        ({"start": T0 + MINUTE}, "no window of 5 minutes starts at 2026-11-20T10:01:00Z: take 2026-11-20T10:00:00Z or"),
        ({"end": T0}, "nothing lies between 2026-11-20T10:00:00Z and 2026-11-20T10:00:00Z: the end must be after"),
        ({"end": T0 + timedelta(days=367)}, "the range has 367 days, 366 are allowed: split it into several exports"),
        ({"site_ids": []}, "no sites are chosen: name some, or leave the choice out for all"),
        ({"site_ids": list(range(251))}, "251 sites are chosen, 250 are allowed: split them into several exports"),
        ({"meter_ids": [1, 2, 1]}, r"some meters are named twice \(1\): name each once"),
        ({"site_ids": [1, 77, 99_999_999_999]}, "there are no sites 77, 99999999999 here: leave out what is not yours"),
        ({"meter_ids": [66]}, "there is no meter 66 here: leave out what is not yours"),
        (
            {"known_at": END + timedelta(days=5)},
            "is not all stored yet: ask for an instant before 2026-11-20T13:30:00Z",
        ),
        ({"known_at": T0}, "nothing of what begins at 2026-11-20T10:00:00Z could be known: ask for a later instant"),
        (
            {"known_at": END, "start": T0 - timedelta(days=1)},
            "versions of readings are kept from 2026-11-20T00:00:00Z on",
        ),
    ],
)
async def test_a_request_that_cannot_be_granted_says_what_to_do(
    exporting: Exporting, database_url: str, change: dict[str, Any], sentence: str
) -> None:
    await store_versions(database_url, [version(1, T0, 1)])
    await store_progress(database_url, END + HOUR / 2, first_arrival=T0)
    with pytest.raises(ExportRefusedError, match=sentence):
        await exporting.ask(wanted_export(T0, END, 5)._replace(**change))
    async with transaction(exporting.pool) as connection:
        assert await list_exports(connection, 1, limit=9) == []


async def test_an_export_that_trips_over_something_is_given_up_and_others_go_on(
    exporting: Exporting, database_url: str
) -> None:
    await store_versions(database_url, many_versions(1))
    doomed = await exporting.ask(wanted_export(T0, END, 5))
    await exporting.begin_with(doomed, 60)
    connection = await asyncpg.connect(database_url)
    # Something that nobody thought of.
    await connection.execute(
        "ALTER TABLE manual_export_chunk ADD CONSTRAINT tripwire CHECK (export_id <> " + str(doomed.export_id) + ")"
    )
    await connection.close()
    assert isinstance(exporting.clock, TurnedClock)
    for _attempt in range(3):
        await exporting.work()
        exporting.clock.ahead += timedelta(hours=1)
    found = await exporting.find(doomed.export_id)
    assert (found.state, found.problem_code) == ("failed", "unexpected")
    other = await exporting.ask(wanted_export(T0, T0 + HOUR, 60))
    await store_progress(database_url, END, first_arrival=T0)
    await exporting.work()
    assert (await exporting.find(other.export_id)).state == "done"
