"""Delivery to the folder that we host, killed at any point of a file's way: what a customer fetches is exact."""

import csv
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.api import folder_account_store as account_store
from services.core.file_transfer import HOSTED
from services.dropbox.host_keys import PUBLIC_FILE
from services.platform.passwords import hash_password
from services.platform.postgres import connect_pool, transaction
from tests.integration.test_file_delivery import CRASH_POINTS, QUICK, until_delivered
from tests.support.dropbox import CUSTOMER, ORGANIZATION, PASSWORD, Hosted, hosted_folder
from tests.support.exports import NO_KAFKA, Exports, at
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async

HOURS, METERS = 3, 50


@pytest.fixture
async def hosted(exports: Exports, tmp_path: Path) -> AsyncIterator[Hosted]:
    """Give the hosted folder on the database of the jobs, with one account of their organization."""
    await exports.seed(meters=METERS)
    await exports.close_windows(15, at(8), at(8 + HOURS))
    pool = await connect_pool(exports.url, max_size=1)
    try:
        async with transaction(pool) as connection:
            await account_store.add_account(connection, CUSTOMER, ORGANIZATION, hash_password(PASSWORD))
    finally:
        pool.terminate()
    root = tmp_path / "dropbox"
    async with hosted_folder(exports.url, root, hosted=Hosted(root, exports.url)) as served:
        yield served


async def fetched(hosted: Hosted) -> dict[str, bytes]:
    """Fetch all that a customer finds."""
    async with hosted.customer() as files:
        found: dict[str, bytes] = {}
        for name in await files.listdir("."):
            if name not in {".", ".."}:
                async with files.open(name, "rb", encoding=None) as stream:
                    content: Any = await stream.read()
                found[str(name)] = content
        return found


@pytest.mark.parametrize("point", [*CRASH_POINTS, *(f"{point}:2" for point in CRASH_POINTS)])
async def test_a_kill_at_any_point_leaves_the_customer_an_exact_set(
    exports: Exports, hosted: Hosted, tmp_path: Path, point: str
) -> None:
    """At the first file, and at a later one."""
    job_id = await exports.add_job({HOSTED: True}, transport="sftp")
    key = tmp_path / "delivery-key"
    key.touch(mode=0o600)
    key.write_bytes(hosted.depositor_key.export_private_key())
    where = QUICK | {
        "METERPOST_DROPBOX_HOST": "localhost",
        "METERPOST_DROPBOX_PORT": str(hosted.port),
        "METERPOST_DROPBOX_KEY_FILE": str(key),
        "METERPOST_DROPBOX_HOST_KEYS_FILE": str(hosted.root / PUBLIC_FILE),
    }
    earlier = 1 if point.endswith(":2") else 0
    with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
        doomed = platform.start("services.delivery", "sftp", environment=where | {"METERPOST_CRASH_AT": point})
        await eventually_async(lambda: doomed.exit_code is not None, 30, because="it is killed")
        assert doomed.exit_code == -9
        assert len(await exports.attempts(job_id)) == earlier
        seen_after_kill = await fetched(hosted)
        platform.start("services.delivery", "sftp", environment=where)
        await until_delivered(exports, job_id, HOURS)
    is_in_place = CRASH_POINTS[point.removesuffix(":2")] == "in place"
    assert len(seen_after_kill) == earlier + is_in_place
    files = await fetched(hosted)
    assert seen_after_kill.items() <= files.items(), "what a customer may have fetched stays as it was"
    assert set(hosted.files()) == set(files), "nothing hidden is left"
    hours = [f"20261120T{hour:02}0000Z_20261120T{hour + 1:02}0000Z" for hour in range(8, 8 + HOURS)]
    assert sorted(files) == [f"{job_id}-Hourly_meters_measurements_{hour}_1of1.csv" for hour in hours]
    rows = [(row[4], row[0]) for name in files for row in list(csv.reader(files[name].decode().splitlines()))[1:]]
    assert len(rows) == len(set(rows)) == HOURS * 4 * METERS
    reasons = [reason for _part, _outcome, reason in await exports.attempts(job_id)]
    expected = ["stored"] * HOURS
    if is_in_place:
        expected[earlier] = "already_there"
    assert reasons == expected
    [told] = await hosted.fetch("SELECT count(*) AS files, count(DISTINCT file_name) AS names FROM dropbox_file")
    assert told == {"files": HOURS, "names": HOURS}
