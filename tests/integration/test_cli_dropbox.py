"""`meterpost dropbox`, and jobs that leave their files in the hosted folder: as operators type it."""

import asyncio
import json
from pathlib import Path

import asyncpg
import asyncssh
import pytest

from services.platform.passwords import is_password
from services.platform.secrets import new_key
from tests.support.command import Meterpost
from tests.support.dropbox import CUSTOMER, PASSWORD, Hosted, hosted_folder
from tests.support.dropbox import new_key as new_ssh_key

CREATE = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--all-sites")
METERS = (
    "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input\nTap,Water,m3,0.01,Plant,LG-1,logger,1\n"
)


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    environment = {"METERPOST_DATABASE_URL": database_url, "METERPOST_SECRET_KEYS": new_key("test"), "PW": PASSWORD}
    command = Meterpost(tmp_path, environment)
    (tmp_path / "meters.csv").write_text(METERS)
    command.ok("meters", "import", "meters.csv", "--organization", "Acme")
    key = new_ssh_key()
    key.write_public_key(tmp_path / "acme.pub")
    key.write_private_key(tmp_path / "acme")
    return command


async def hash_of(url: str) -> str | None:
    connection = await asyncpg.connect(url)
    try:
        found: str | None = await connection.fetchval("SELECT password_hash FROM dropbox_account")
        return found
    finally:
        await connection.close()


def test_an_account_from_its_beginning_to_its_end(meterpost: Meterpost, database_url: str) -> None:
    made = meterpost.json("dropbox", "add", "acme")
    assert is_password(asyncio.run(hash_of(database_url)), made["generated_password"])
    assert "generated_password" not in meterpost.json("dropbox", "set-password", "acme", "--password", "env:PW")
    assert is_password(asyncio.run(hash_of(database_url)), PASSWORD)
    [added] = meterpost.json("dropbox", "add-key", "acme", "acme.pub")["added"]
    assert meterpost.json("dropbox", "add-key", "acme", "acme.pub")["added"] == []
    [account] = meterpost.json("dropbox", "accounts")["accounts"]
    assert (account["user_name"], account["organization_name"], account["has_password"]) == ("acme", "Acme", True)
    assert [key["fingerprint"] for key in account["keys"]] == [added]
    assert "password_hash" not in json.dumps(account)
    assert meterpost.json("dropbox", "set-password", "acme", "--none")["has_password"] is False
    assert asyncio.run(hash_of(database_url)) is None
    assert meterpost.json("dropbox", "disable", "acme")["changed"] is True
    assert "disabled since" in meterpost.ok("dropbox", "accounts")
    assert meterpost.json("dropbox", "enable", "acme")["changed"] is True
    assert meterpost.json("dropbox", "remove-key", "acme", added)["removed"] == added
    assert "no key" in meterpost.refused("dropbox", "remove-key", "acme", added)


def test_mistakes_say_what_to_do_and_repeat_no_secret(meterpost: Meterpost, tmp_path: Path) -> None:
    meterpost.ok("dropbox", "add", "acme", "--key-file", "acme.pub")
    assert "already" in meterpost.refused("dropbox", "add", "acme")
    for name in ("9x", "meterpost-delivery", "Upper", "a b", "x"):
        assert "cannot be an account's name" in meterpost.refused("dropbox", "add", name)
    assert "no account 'nobody'" in meterpost.refused("dropbox", "disable", "nobody")
    assert "private key" in meterpost.refused("dropbox", "add-key", "acme", "acme")
    told = meterpost.refused("dropbox", "set-password", "acme", "--password", "my-secret-password")
    assert "never given as an argument" in told
    assert "my-secret" not in told
    (tmp_path / "short").write_text("secret1\n")
    told = meterpost.refused("dropbox", "set-password", "acme", "--password", "file:short")
    assert "12 to 1,000 characters" in told
    assert "secret1" not in told
    (tmp_path / "options").write_text('command="id" ' + (tmp_path / "acme.pub").read_text())
    assert "line 1 of options" in meterpost.refused("dropbox", "add-key", "acme", "options")
    asyncssh.generate_private_key("ssh-rsa", key_size=1024).write_public_key(tmp_path / "weak.pub")
    assert "2048 bits" in meterpost.refused("dropbox", "add-key", "acme", "weak.pub")
    meterpost.ok("dropbox", "add", "other")
    assert "has no key" in meterpost.refused("dropbox", "set-password", "other", "--none")


def test_keys_for_both_sides_are_made_once(meterpost: Meterpost, tmp_path: Path) -> None:
    arguments = ("--folder", "dropbox", "--key-file", "delivery", "--host-keys-file", "host-keys.pub")
    first = meterpost.json("dropbox", "make-keys", *arguments)
    assert (tmp_path / "delivery").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "host-keys.pub").read_text() == (tmp_path / "dropbox" / "host-keys.pub").read_text()
    assert meterpost.json("dropbox", "make-keys", *arguments) == first


async def test_a_hosted_job_is_created_tried_and_changed(
    meterpost: Meterpost, tmp_path: Path, database_url: str
) -> None:
    async with hosted_folder(
        database_url, tmp_path / "dropbox", hosted=Hosted(tmp_path / "dropbox", database_url)
    ) as it:
        key = tmp_path / "delivery-key"
        key.write_bytes(it.depositor_key.export_private_key())
        told = {
            "METERPOST_DROPBOX_HOST": "127.0.0.1",
            "METERPOST_DROPBOX_PORT": str(it.port),
            "METERPOST_DROPBOX_KEY_FILE": str(key),
            "METERPOST_DROPBOX_HOST_KEYS_FILE": str(it.root / "host-keys.pub"),
        }
        knowing = Meterpost(tmp_path, {**meterpost.environment, **told})
        made = await asyncio.to_thread(knowing.ok, *CREATE, "--hosted", "--line-end", "crlf")
        assert "to the hosted folder" in made
        nobody = await asyncio.to_thread(knowing, "jobs", "test", "1")
        assert nobody.code == 1, "no account could fetch yet"
        await asyncio.to_thread(knowing.ok, "dropbox", "add", CUSTOMER, "--password", "env:PW")
        assert "removed" in await asyncio.to_thread(knowing.ok, "jobs", "test", "1")
        unknowing = await asyncio.to_thread(meterpost, "jobs", "test", "1")
        assert "METERPOST_DROPBOX_HOST" in unknowing.out
        assert "operator keeps" in await asyncio.to_thread(knowing.refused, "jobs", "host-key", "1")
        for wrong in (("--directory", "x"), ("--secret", "password=env:PW"), ("--url", "https://example.org/")):
            await asyncio.to_thread(knowing.refused, *CREATE, "--hosted", *wrong)
        await asyncio.to_thread(knowing.ok, "jobs", "edit", "1", "--sftp", "u@sftp.example.org")
        shown = await asyncio.to_thread(knowing.ok, "jobs", "show", "1")
        assert "u@sftp.example.org" in shown
        assert "crlf" in shown
        await asyncio.to_thread(knowing.ok, "jobs", "edit", "1", "--hosted")
        shown = await asyncio.to_thread(knowing.ok, "jobs", "show", "1")
        assert "the hosted folder" in shown
        assert "example.org" not in shown
        it.put("left.csv", b"x")
        async with it.depositor() as files:
            async with files.open("/1/.a.csv.0123abcd.partial", "xb") as stream:
                await stream.write(b"content")
            await files.rename("/1/.a.csv.0123abcd.partial", "/1/a.csv")

        async def listed(*options: str) -> list[dict[str, object]]:
            found = await asyncio.to_thread(knowing.json, "dropbox", "files", *options)
            return list(found["files"])

        async with asyncio.timeout(10):
            while not await listed("--unfetched"):
                pass
        async with it.customer(CUSTOMER) as files:
            await files.get("a.csv", tmp_path / "a.csv")
            await files.remove("a.csv")
        async with asyncio.timeout(10):
            while await listed():
                pass
        [file] = await listed("--all")
        assert (file["file_name"], file["fetch_count"], file["removed_by"]) == ("a.csv", 1, CUSTOMER)
