"""The hosted folder as customers meet it: their own files and nothing else, by whatever client, however it asks."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from services.core.file_transfer import HOSTED_USER
from services.platform.metrics import REGISTRY
from tests.support.dropbox import CUSTOMER, OTHER_CUSTOMER, OTHER_ORGANIZATION, PASSWORD, Hosted, hosted_folder, new_key
from tests.support.polling import eventually_async

BIG = os.urandom(3_000_000)


@pytest.fixture
async def hosted(database_url: str, tmp_path: Path) -> AsyncIterator[Hosted]:
    async with hosted_folder(database_url, tmp_path / "dropbox") as running:
        running.put("a.csv", b"first")
        running.put("b.csv", BIG)
        running.put(".c.csv.0123abcd.partial", b"half")
        running.put("theirs.csv", b"not yours", OTHER_ORGANIZATION)
        yield running


async def test_a_customer_lists_fetches_stats_and_removes(hosted: Hosted, tmp_path: Path) -> None:
    async with hosted.customer() as files:
        assert sorted(await files.listdir(".")) == [".", "..", "a.csv", "b.csv"]
        assert await files.realpath(".") == "/"
        assert (await files.stat("a.csv")).size == 5
        assert await files.isdir("/")
        await files.get("b.csv", tmp_path / "got.csv")
        assert (tmp_path / "got.csv").read_bytes() == BIG
        await files.remove("/a.csv")
        assert sorted(await files.listdir("/")) == [".", "..", "b.csv"]
    assert sorted(hosted.files()) == [".c.csv.0123abcd.partial", "b.csv"]


async def test_what_was_fetched_and_removed_is_on_record(hosted: Hosted) -> None:
    async with hosted.depositor() as files:
        async with files.open("/1/.n.csv.0123abcd.partial", "xb") as stream:
            await stream.write(b"new")
        await files.posix_rename("/1/.n.csv.0123abcd.partial", "/1/n.csv")
    async with hosted.customer() as files:
        async with files.open("n.csv", "rb") as stream:
            assert len(await stream.read(1)) == 1  # not to its end: that is no fetch
        async with files.open("n.csv", "rb") as stream:
            assert len(await stream.read()) == 3
        await files.remove("n.csv")

    async def recorded() -> bool:
        rows = await hosted.fetch("SELECT * FROM dropbox_file WHERE file_name = 'n.csv'")
        return bool(rows) and rows[0]["removed_by"] is not None

    await eventually_async(recorded, 10, because="the removal is recorded")
    [row] = await hosted.fetch("SELECT * FROM dropbox_file WHERE file_name = 'n.csv'")
    assert (row["organization_id"], row["size_bytes"], row["fetch_count"]) == (1, 3, 1)
    assert (row["last_fetched_by"], row["removed_by"]) == (CUSTOMER, CUSTOMER)
    [account] = await hosted.fetch("SELECT * FROM dropbox_account WHERE user_name = $1", CUSTOMER)
    assert account["last_login_from"] == "127.0.0.1"


Refused = Callable[[asyncssh.SFTPClient], Awaitable[object]]
REFUSED: dict[str, Refused] = {
    "write": lambda files: files.open("a.csv", "wb"),
    "write within": lambda files: files.open("a.csv", "r+b"),
    "append": lambda files: files.open("a.csv", "ab"),
    "create": lambda files: files.open("new.csv", "xb"),
    "create a hidden one": lambda files: files.open(".x.csv.0123abcd.partial", "xb"),
    "truncate": lambda files: files.truncate("a.csv", 0),
    "rename": lambda files: files.rename("a.csv", "z.csv"),
    "rename over": lambda files: files.posix_rename("a.csv", "b.csv"),
    "mkdir": lambda files: files.mkdir("folder"),
    "rmdir": lambda files: files.rmdir("/"),
    "chmod": lambda files: files.chmod("a.csv", 0o777),
    "chown": lambda files: files.chown("a.csv", 0, 0),
    "utime": lambda files: files.utime("a.csv", (0, 0)),
    "symlink": lambda files: files.symlink("/etc/passwd", "link"),
    "link": lambda files: files.link("a.csv", "link"),
    "readlink": lambda files: files.readlink("a.csv"),
    "statvfs": lambda files: files.statvfs("/"),
    "remove the folder": lambda files: files.remove("/"),
    "remove what is under way": lambda files: files.remove(".c.csv.0123abcd.partial"),
    "see what is under way": lambda files: files.stat(".c.csv.0123abcd.partial"),
    "another's file": lambda files: files.open("/2/theirs.csv", "rb"),
    "another's file by dots": lambda files: files.open("../2/theirs.csv", "rb"),
    "another's folder": lambda files: files.readdir("../2"),
    "the machine's files": lambda files: files.open("/etc/passwd", "rb"),
    "the machine's files by dots": lambda files: files.open("../../../../../../etc/passwd", "rb"),
    "the machine's folders": lambda files: files.readdir("/etc"),
    "the host keys": lambda files: files.stat("../../host-keys/host-key-1"),
    "a name with a zero": lambda files: files.open("a.csv\0", "rb"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_everything_else_is_refused_and_changes_nothing(hosted: Hosted, case: str) -> None:
    before = hosted.files(), hosted.files(OTHER_ORGANIZATION)
    async with hosted.customer() as files:
        with pytest.raises(asyncssh.SFTPError) as refused:
            await REFUSED[case](files)
        assert str(hosted.root) not in str(refused.value), "nothing of this machine's paths is told"
        assert await files.exists("a.csv"), "the session goes on"
    assert (hosted.files(), hosted.files(OTHER_ORGANIZATION)) == before


async def test_links_that_lie_there_are_neither_followed_nor_seen(hosted: Hosted, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_bytes(b"secret")
    (hosted.folder() / "link.csv").symlink_to(tmp_path / "secret.csv")
    (hosted.folder() / "folder.csv").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(hosted.folder() / "pipe.csv")
    (hosted.folder() / "inside.csv").mkdir()
    (hosted.folder() / "inside.csv" / "x.csv").write_bytes(b"x")
    async with hosted.customer() as files:
        assert sorted(await files.listdir(".")) == [".", "..", "a.csv", "b.csv"]
        for name in ("link.csv", "folder.csv", "folder.csv/secret.csv", "pipe.csv", "inside.csv", "inside.csv/x.csv"):
            for attempt in (files.stat, files.lstat, files.remove, files.open):
                with pytest.raises(asyncssh.SFTPNoSuchFile):
                    await attempt(name)
    assert (hosted.folder() / "link.csv").is_symlink()


async def test_a_folder_that_is_a_link_is_not_entered(database_url: str, tmp_path: Path) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox") as hosted:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "x.csv").write_bytes(b"x")
        hosted.folder().parent.mkdir(parents=True, exist_ok=True)
        hosted.folder().symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        async with hosted.customer() as files:
            with pytest.raises(asyncssh.SFTPError):
                await files.listdir("/")
            with pytest.raises(asyncssh.SFTPError):
                await files.stat("x.csv")


async def test_nothing_but_sftp_can_be_started(hosted: Hosted, tmp_path: Path) -> None:
    async with await hosted.connect() as connection:
        for refused in (
            lambda: connection.run("id"),
            lambda: connection.run("scp -f a.csv"),
            lambda: connection.run("scp -t ."),
            lambda: connection.run(None),
            lambda: connection.run(None, subsystem="netconf"),
            lambda: connection.run(None, term_type="xterm"),
            lambda: connection.open_connection("127.0.0.1", hosted.port),
            lambda: connection.open_unix_connection(str(tmp_path / "socket")),
            lambda: connection.create_tun(asyncssh.SSHTunTapSession),
        ):
            with pytest.raises(asyncssh.ChannelOpenError):
                await refused()
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", hosted.port)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_path(str(tmp_path / "s"), str(tmp_path / "t"))
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.run(None, x11_forwarding=True)
        async with connection.start_sftp_client() as files:
            assert await files.exists("a.csv")


async def test_variables_of_a_client_are_not_kept(hosted: Hosted) -> None:
    async with await hosted.connect() as connection, connection.start_sftp_client(env={"LD_PRELOAD": "x"}) as files:
        assert await files.exists("a.csv")


async def test_channels_are_limited(hosted: Hosted) -> None:
    async with await hosted.connect() as connection:
        clients = [await connection.start_sftp_client() for _ in range(4)]
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.start_sftp_client()
        clients[0].exit()
        await clients[0].wait_closed()

        async def opens() -> bool:
            try:
                clients.append(await connection.start_sftp_client())
            except asyncssh.ChannelOpenError:
                return False
            return True

        await eventually_async(opens, 5, because="the place of a closed channel is free")


async def test_open_files_are_limited(hosted: Hosted) -> None:
    async with hosted.customer() as files:
        opened = [await files.open("a.csv", "rb") for _ in range(64)]
        with pytest.raises(asyncssh.SFTPFailure, match="64 files"):
            await files.open("a.csv", "rb")
        await opened[0].close()
        await files.open("a.csv", "rb")


def read_so_far() -> float:
    return REGISTRY.get_sample_value("meterpost_dropbox_bytes_total", {"way": "read"}) or 0.0


async def test_a_client_that_asks_and_does_not_read_costs_no_memory(hosted: Hosted) -> None:
    """Half a gigabyte asked for at once: answers wait for the client on the disk, not in the server's memory."""
    async with hosted.customer() as files, files.open("b.csv", "rb") as stream:
        before, seen = read_so_far(), [-1.0]
        reader = files._handler._reader
        transport: Any = reader and reader.channel.get_connection()._transport
        transport.pause_reading()
        reads = [asyncio.create_task(stream.read(262_144, 0)) for _ in range(2_000)]

        async def stands_still() -> bool:
            await asyncio.sleep(0.1)  # not a wait for something: what is asked is whether nothing happens in it
            seen.append(read_so_far())
            return seen[-1] == seen[-2] > before

        await eventually_async(stands_still, 20, because="the server waits for the client")
        assert read_so_far() - before < 30_000_000
        transport.resume_reading()
        assert {len(result) for result in await asyncio.gather(*reads)} == {262_144}


async def test_wrong_proofs_are_refused(hosted: Hosted) -> None:
    mine, others = new_key(), new_key()
    await hosted.add_key(CUSTOMER, mine)
    for user, options in (
        (CUSTOMER, {"password": "wrong-password"}),
        (CUSTOMER, {"password": ""}),
        (CUSTOMER, {"client_keys": [others]}),
        (CUSTOMER, {"client_keys": [hosted.depositor_key]}),
        (OTHER_CUSTOMER, {"client_keys": [mine]}),
        ("nobody", {"password": PASSWORD}),
        ("nobody\u200b", {"password": PASSWORD}),
        ("", {"password": PASSWORD}),
        (HOSTED_USER, {"password": PASSWORD}),
        (HOSTED_USER, {"client_keys": [mine]}),
    ):
        with pytest.raises((asyncssh.PermissionDenied, asyncssh.ConnectionLost)):
            await hosted.connect(user, **options)
    async with hosted.customer(client_keys=[mine]) as files:
        assert await files.exists("a.csv")


async def test_deliverys_key_opens_no_account_even_where_somebody_added_it(hosted: Hosted) -> None:
    await hosted.add_key(CUSTOMER, hosted.depositor_key)
    with pytest.raises(asyncssh.PermissionDenied):
        await hosted.connect(CUSTOMER, client_keys=[hosted.depositor_key])


async def test_after_some_refusals_an_address_is_refused_unseen(database_url: str, tmp_path: Path) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox", dropbox_failures=3) as hosted:
        key = new_key()
        await hosted.add_key(OTHER_CUSTOMER, key)
        for _ in range(3):
            with pytest.raises(asyncssh.PermissionDenied):
                await hosted.connect(password="wrong-password")
        with pytest.raises(asyncssh.PermissionDenied):
            await hosted.connect()
        # A key cannot be guessed, so it is not held against anybody.
        async with hosted.customer(OTHER_CUSTOMER, client_keys=[key]) as files:
            assert await files.listdir("/")


async def test_refusals_are_held_back(database_url: str, tmp_path: Path) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox", dropbox_failure_delay_seconds=0.5) as hosted:
        for user in (CUSTOMER, "nobody"):
            begun = time.monotonic()
            with pytest.raises(asyncssh.PermissionDenied):
                await hosted.connect(user, password="wrong-password")
            assert time.monotonic() - begun >= 0.5


async def test_passwords_and_unknown_names_are_in_no_log(hosted: Hosted, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        await hosted.connect("my-secret-as-name", password="my-secret-password")
    with pytest.raises(asyncssh.PermissionDenied):
        await hosted.connect(CUSTOMER, password="my-secret-password")
    async with hosted.customer():
        pass
    told = "".join(capfd.readouterr())
    assert "dropbox_login_refused" in told
    assert "dropbox_logged_in" in told
    assert "my-secret" not in told
    assert PASSWORD not in told


async def test_connections_are_limited_for_an_account_and_in_total(database_url: str, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"dropbox_connections_per_account": 2, "dropbox_connections": 4}
    async with hosted_folder(database_url, tmp_path / "dropbox", **limits) as hosted:
        mine = [await hosted.connect() for _ in range(2)]
        third = await hosted.connect()
        await asyncio.wait_for(third.wait_closed(), 5)
        theirs = [await hosted.connect(OTHER_CUSTOMER) for _ in range(2)]
        with pytest.raises((asyncssh.Error, OSError)):
            await hosted.connect(OTHER_CUSTOMER)
        for one in (*mine, *theirs):
            one.close()
            await one.wait_closed()
        async with hosted.customer() as files:
            assert await files.listdir("/")


async def test_who_does_not_log_in_makes_room_again(database_url: str, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"dropbox_logins_per_address": 2, "dropbox_login_seconds": 0.5}
    async with hosted_folder(database_url, tmp_path / "dropbox", **limits) as hosted:
        silent = [await asyncio.open_connection("127.0.0.1", hosted.port) for _ in range(2)]
        with pytest.raises((asyncssh.Error, OSError)):
            await hosted.connect()

        async def lets_in() -> bool:
            try:
                async with hosted.customer():
                    return True
            except (asyncssh.Error, OSError):
                return False

        await eventually_async(lets_in, 5, because="the silent connections were ended")
        for _reader, writer in silent:
            writer.close()


async def test_idle_sessions_are_ended(database_url: str, tmp_path: Path) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox", dropbox_idle_seconds=0.3) as hosted:
        connection = await hosted.connect()
        await asyncio.wait_for(connection.wait_closed(), 5)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE dropbox_account SET disabled_at = now()",
        "UPDATE dropbox_account SET credentials_version = credentials_version + 1",
        "DELETE FROM dropbox_account",
    ],
)
async def test_a_right_that_is_taken_away_ends_the_sessions(hosted: Hosted, change: str) -> None:
    connection = await hosted.connect()
    other = await hosted.connect(OTHER_CUSTOMER)
    await hosted.fetch(f"{change} WHERE user_name = $1", CUSTOMER)
    await asyncio.wait_for(connection.wait_closed(), 5)
    async with other, other.start_sftp_client() as files:
        assert await files.exists("theirs.csv")
    if "version" not in change:
        with pytest.raises(asyncssh.PermissionDenied):
            await hosted.connect()
