"""The file of an export while its chunks are being made, and readings grouped in either way: always the same bytes."""

import threading
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from services.api.manual_exports import cancel_export
from services.core.manual_export import ExportFormat
from services.exports.assembling import AssemblyStopped, ChunkBrokenError
from services.exports.chunks import ChunkMaker, Feed, Made, nowhere
from services.exports.feeding import Feeding
from services.exports.model import Chunk, Claim, Export
from services.platform.postgres import Pool, transaction
from tests.support.closing import T0, many_versions, store_versions
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, seed_catalog, wanted_export
from tests.support.polling import eventually, eventually_async

END = T0 + timedelta(hours=3)
VERSIONS = many_versions(1)
WANTED = wanted_export(T0, END, 5)


@pytest.fixture
async def exporting(pool: Pool, database_url: str, tmp_path: Path) -> Exporting:
    """Give a worker on a catalog with awkward names, and readings."""
    await seed_catalog(database_url)
    await store_versions(database_url, VERSIONS)
    return Exporting(pool, tmp_path / "store", TurnedClock())


async def begin(exporting: Exporting, export_format: ExportFormat = ExportFormat.CSV) -> tuple[Claim, Export]:
    """Ask for an export in chunks of twenty minutes, and claim it."""
    export = await exporting.ask(WANTED._replace(format=export_format))
    await exporting.begin_with(export, 20)
    claim = await exporting.store.claim(exporting.clock.now())
    assert claim is not None
    return claim, await exporting.store.load(claim)


async def next_chunk(exporting: Exporting, claim: Claim, export: Export, feed: Feed = nowhere) -> Export:
    """Make one more chunk, if the stretch has rows."""
    made = await exporting.maker.make_next(claim, export, feed=feed)
    return export._replace(position=made.position)


def files(exporting: Exporting) -> list[str]:
    """Return the names of what is in the store, chunks left out, with what is unfinished there."""
    return [one.name for one in exporting.folder.rglob("*") if one.is_file() and one.parent.name != "chunks"]


def writing() -> list[str]:
    """Return the names of the threads that write files."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("export-file")]


@pytest.mark.parametrize("export_format", list(ExportFormat))
async def test_fed_chunk_by_chunk_the_file_has_the_same_bytes(
    exporting: Exporting, export_format: ExportFormat
) -> None:
    undisturbed = await exporting.file(WANTED._replace(format=export_format), chunk_minutes=20)
    claim, export = await begin(exporting, export_format)
    feeding = Feeding(exporting.objects, claim, export)
    try:
        while export.position < WANTED.end:
            export = await next_chunk(exporting, claim, export, feeding.add)
            assert not any(
                name.endswith(f"export{claim.key.export_id}.{export_format.value}") for name in files(exporting)
            )
        file = await feeding.file()
    finally:
        await feeding.close()
    content = (exporting.folder / file.name).read_bytes()
    assert content == undisturbed
    assert file.byte_count == len(content)
    if export_format is not ExportFormat.PARQUET:
        assert content == rendered(expected_export(VERSIONS, WANTED), export_format)


async def test_a_file_that_nobody_waits_for_any_more_leaves_nothing(exporting: Exporting) -> None:
    claim, export = await begin(exporting)
    feeding = Feeding(exporting.objects, claim, export)
    await next_chunk(exporting, claim, export, feeding.add)
    await feeding.close()
    with pytest.raises(AssemblyStopped):
        await feeding.file()
    assert files(exporting) == []
    eventually(lambda: not writing(), 5, because="the thread that wrote has ended")


async def test_a_damaged_chunk_ends_the_file_before_the_last_one_came(exporting: Exporting) -> None:
    claim, export = await begin(exporting)
    made = list[Chunk]()
    await next_chunk(exporting, claim, export, made.append)
    [chunk] = exporting.folder.rglob("chunks/*")
    chunk.write_bytes(chunk.read_bytes()[:-2] + b"9\n")
    feeding = Feeding(exporting.objects, claim, export)
    feeding.add(made[0])
    # The thread ends by itself, though nobody has said that no chunk follows.
    await eventually_async(lambda: feeding.is_over, 5, because="the damage is noticed")
    with pytest.raises(ChunkBrokenError):
        await feeding.file()
    await feeding.close()
    assert files(exporting) == []


@pytest.mark.parametrize("made_before", [0, 4])
async def test_worked_off_step_by_step_it_is_the_same_file(exporting: Exporting, made_before: int) -> None:
    """The file is begun after a step, with what others have made before."""
    claim, export = await begin(exporting)
    for _number in range(made_before):
        export = await next_chunk(exporting, claim, export)
    await exporting.store.release(claim, exporting.clock.now())
    exporting.worker = exporting.worker_with(step_seconds=0)
    assert await exporting.work() == 1
    assert await exporting.content(claim.key.export_id) == rendered(expected_export(VERSIONS, WANTED), ExportFormat.CSV)


async def test_cancelled_while_the_file_is_fed_nothing_is_left(exporting: Exporting) -> None:
    export = await exporting.ask(WANTED)
    await exporting.begin_with(export, 20)

    class Cancelling(ChunkMaker):
        """Somebody cancels the export before its fourth chunk."""

        steps = 0

        async def make_next(self, claim: Claim, export: Export, seconds: float = 0.0, feed: Feed = nowhere) -> Made:
            self.steps += 1
            if self.steps == 4:
                assert writing()
                async with transaction(exporting.pool) as connection:
                    await cancel_export(connection, 1, export.key.export_id, "boss")
            return await super().make_next(claim, export, seconds, feed)

    exporting.maker = Cancelling(exporting.pool, exporting.store, exporting.objects, exporting.clock)
    exporting.worker = exporting.worker_with(step_seconds=0)
    await exporting.work()
    assert (await exporting.find(export.export_id)).state == "cancelled"
    await exporting.sweeper.sweep()
    assert [one for one in exporting.folder.rglob("*") if one.is_file()] == []
    eventually(lambda: not writing(), 5, because="the thread that wrote has ended")


@pytest.mark.parametrize("resolution", [5, 15, 60])
async def test_grouped_by_sorting_or_by_hashing_the_bytes_are_the_same(
    exporting: Exporting, database_url: str, resolution: int
) -> None:
    """How often meters are read, by their configurations, decides which it is."""
    wanted = wanted_export(T0, END, resolution)
    expected = rendered(expected_export(VERSIONS, wanted), ExportFormat.CSV)
    for cadence in (60, 1):
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE meter_configuration SET cadence_minutes = $1", cadence)
        await connection.close()
        assert await exporting.file(wanted) == expected
