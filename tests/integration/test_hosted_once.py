"""A file in the hosted folder comes once, even where its customer is quicker than our record of it."""

from pathlib import Path

import pytest

from services.api import folder_account_store as account_store
from services.api.request_store import request_resend
from services.core.file_transfer import HOSTED
from services.platform.passwords import hash_password
from services.platform.postgres import Pool, transaction
from tests.integration.test_file_delivery import QUICK
from tests.integration.test_requests import asker, until_states
from tests.support.dropbox import CUSTOMER, PASSWORD, Hosted, hosted_folder
from tests.support.exports import NO_KAFKA, Exports, at
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async


async def removed_by(hosted: Hosted) -> list[str]:
    return [
        row["removed_by"] for row in await hosted.fetch("SELECT removed_by FROM dropbox_file ORDER BY deposited_at")
    ]


@pytest.mark.parametrize("who", ["the customer", "unknown"])
async def test_what_was_removed_between_rename_and_commit(
    exports: Exports, pool: Pool, database_url: str, tmp_path: Path, who: str
) -> None:
    await exports.seed(meters=5)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job({HOSTED: True}, transport="sftp")
    async with transaction(pool) as connection:
        await account_store.add_account(connection, CUSTOMER, 1, hash_password(PASSWORD))
    root = tmp_path / "dropbox"
    async with hosted_folder(database_url, root, hosted=Hosted(root, database_url)) as hosted:
        key = tmp_path / "depositor-key"
        key.write_bytes(hosted.depositor_key.export_private_key())
        keys = tmp_path / "host-keys.pub"
        keys.write_text("\n".join(hosted.host_keys))
        environment = {
            **QUICK,
            "METERPOST_DROPBOX_HOST": "localhost",
            "METERPOST_DROPBOX_PORT": str(hosted.port),
            "METERPOST_DROPBOX_KEY_FILE": str(key),
            "METERPOST_DROPBOX_HOST_KEYS_FILE": str(keys),
        }
        with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
            crash = {**environment, "METERPOST_CRASH_AT": "delivery.after_rename"}
            dying = platform.start("services.delivery", "sftp", environment=crash)
            await eventually_async(lambda: dying.exit_code is not None, 30)
            [name] = hosted.files()
            async with hosted.customer() as files:
                await files.remove(name)

            async def is_noted() -> bool:
                return await removed_by(hosted) == [CUSTOMER]

            await eventually_async(is_noted)
            if who == "unknown":
                await exports.execute("UPDATE dropbox_file SET removed_by = 'unknown'")
            platform.start("services.delivery", "sftp", environment=environment)
            await until_states(exports, job_id, ["delivered"], 30)
            if who == "unknown":
                assert list(hosted.files()) == [name]
                return
            assert hosted.files() == {}
            assert await exports.attempts(job_id) == [(1, "delivered", "already_there")]
            # Asked for again, it comes again.
            await request_resend(pool, 1, job_id, at(8), asker())
            await eventually_async(lambda: list(hosted.files()) == [name], 30)
            await until_states(exports, job_id, ["delivered"], 30)
