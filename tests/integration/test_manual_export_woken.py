"""A worker of manual exports that was frozen past its lease and wakes up: it spoils and publishes nothing."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.core.manual_export import ExportFormat
from services.exports.feeding import Feeding
from services.exports.model import Claim, Export, File
from services.exports.store import ExportStore
from services.platform import objects
from services.platform.errors import Unavailable, UserError
from services.platform.postgres import Pool
from tests.support.closing import T0, many_versions, store_versions
from tests.support.manual_exports import Exporting, TurnedClock, expected_export, rendered, seed_catalog, wanted_export
from tests.support.polling import eventually

END = T0 + timedelta(hours=3)
VERSIONS = many_versions(1)
WANTED = wanted_export(T0, END, 5)


@pytest.fixture
async def exporting(pool: Pool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporting:
    """Give a worker that has an export to make, in chunks of twenty minutes; what it writes is soon on the disk."""
    monkeypatch.setattr(objects, "WRITE_BUFFER_BYTES", 1024)
    await seed_catalog(database_url)
    await store_versions(database_url, VERSIONS)
    exporting = Exporting(pool, tmp_path / "store", TurnedClock())
    await exporting.begin_with(await exporting.ask(WANTED), 20)
    return exporting


async def take_over(exporting: Exporting) -> tuple[Claim, Export]:
    """Claim the export, whoever has it: its lease is over."""
    exporting.clock.ahead += timedelta(minutes=5)  # type: ignore[attr-defined] # the fixture's clock can be turned
    claimed = await exporting.store.claim(exporting.clock.now())
    assert claimed is not None
    return claimed, await exporting.store.load(claimed)


async def begin_file(exporting: Exporting, claim: Claim, export: Export) -> Feeding:
    """Make the chunks that are left, and begin the file with all there are; it lacks their end."""
    feeding = Feeding(exporting.objects, claim, export)
    while export.position < WANTED.end:
        made = await exporting.maker.make_next(claim, export)
        export = export._replace(position=made.position)
    for chunk in await exporting.store.chunks(claim):
        feeding.add(chunk)
    here = Path(export.object_name(claim.epoch)).parent
    eventually(lambda: list((exporting.folder / here).glob("*#*")), 10, because="the file is begun")
    return feeding


def is_unfinished(file: Path) -> bool:
    return "#" in file.name


def is_finished(file: Path) -> bool:
    return "#" not in file.name


def files(exporting: Exporting, kind: Callable[[Path], bool]) -> list[Path]:
    """Return the files of a kind that are in the store, chunks left out."""
    every = [one for one in exporting.folder.rglob("*") if one.is_file() and one.parent.name != "chunks"]
    return [one for one in every if kind(one)]


@pytest.mark.parametrize("woken", ["gives up", "goes on"])
async def test_woken_while_the_next_owner_writes_the_file_it_changes_nothing(exporting: Exporting, woken: str) -> None:
    zombie = await begin_file(exporting, *await take_over(exporting))
    heir_claim, export = await take_over(exporting)
    heir = await begin_file(exporting, heir_claim, export)
    if woken == "goes on":
        # It takes the file for complete, and would have it appear.
        with pytest.raises((Unavailable, UserError)):
            await zombie.file()
    await zombie.close()
    assert files(exporting, is_finished) == []
    file = await heir.file()
    await heir.close()
    now = exporting.clock.now()
    await exporting.store.finish(heir_claim, file, now, now + timedelta(hours=48))
    await exporting.sweeper.sweep()
    whole = rendered(expected_export(VERSIONS, WANTED), ExportFormat.CSV)
    assert await exporting.content(export.key.export_id) == whole
    assert files(exporting, lambda _file: True) == [await exporting.path(export.key.export_id)]


async def test_woken_after_the_next_owner_has_finished_it_takes_its_own_file_away(exporting: Exporting) -> None:
    """Its file is complete, and another stands in the tables."""
    plain = exporting.store

    class Frozen(ExportStore):
        """It is frozen between the file and the word of it; another makes the export meanwhile."""

        async def finish(self, claim: Claim, file: File, now: datetime, expires_at: datetime) -> None:
            exporting.store = plain
            exporting.worker = exporting.worker_with()
            heir, _export = await take_over(exporting)
            await exporting.worker.work(heir)
            await exporting.sweeper.sweep()
            assert (exporting.folder / file.name).exists() is False
            # A store that is no folder would keep it: the file appeared after others were removed.
            exporting.objects.put(file.name, b"the zombie's")
            await super().finish(claim, file, now, expires_at)

    exporting.store = Frozen(exporting.pool, "frozen", timedelta(seconds=30))
    zombie, export = await take_over(exporting)
    exporting.worker = exporting.worker_with()
    await exporting.worker.work(zombie)
    await exporting.sweeper.sweep()
    whole = rendered(expected_export(VERSIONS, WANTED), ExportFormat.CSV)
    assert await exporting.content(export.key.export_id) == whole
    assert files(exporting, lambda _file: True) == [await exporting.path(export.key.export_id)]


async def test_what_a_killed_worker_left_of_its_file_goes_when_the_next_one_begins(exporting: Exporting) -> None:
    killed = await begin_file(exporting, *await take_over(exporting))
    [left] = files(exporting, is_unfinished)
    (left.parent.parent / "lost+found").mkdir()  # no epoch, and nobody's business
    heir_claim, export = await take_over(exporting)
    heir = await begin_file(exporting, heir_claim, export)
    eventually(lambda: not left.exists(), 10, because="the older one is removed")
    for feeding in (killed, heir):
        await feeding.close()
    assert files(exporting, lambda _file: True) == []
