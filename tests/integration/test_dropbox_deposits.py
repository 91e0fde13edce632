"""The hosted folder as delivery meets it: complete files or none, within the quota, for a while, through crashes."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import asyncssh
import pytest

from services.core.file_transfer import HOSTED
from services.core.retry import Verdict
from services.delivery.transports.base import Deadlines, Means
from services.delivery.transports.hosted import ORGANIZATION_ID
from services.delivery.transports.sftp import SftpTransport
from services.dropbox.host_keys import PUBLIC_FILE, load_host_keys, public_line
from services.local.ports import free_port
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.hosted import HostedFolder
from services.platform.outbound import ForbiddenAddress, Outbound, parse_networks
from tests.support.dropbox import OTHER_ORGANIZATION, Hosted, hosted_folder, new_key, seed_accounts
from tests.support.file_servers import installed
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.transports import part

PARTIAL = "/1/.a.csv.0123abcd.partial"


@pytest.fixture
async def hosted(database_url: str, tmp_path: Path) -> AsyncIterator[Hosted]:
    async with hosted_folder(database_url, tmp_path / "dropbox") as running:
        yield running


async def leave(files: asyncssh.SFTPClient, content: bytes, *, partial: str = PARTIAL, name: str = "/1/a.csv") -> None:
    async with files.open(partial, "xb") as stream:
        await stream.write(content)
        await stream.fsync()
    await files.posix_rename(partial, name)


async def test_files_are_left_in_any_organizations_folder_and_read_back(hosted: Hosted) -> None:
    async with hosted.depositor() as files:
        await leave(files, b"one")
        await leave(files, b"two", partial="/2/.a.csv.0123abcd.partial", name="/2/a.csv")
        async with files.open("/2/a.csv", "rb", encoding=None) as stream:
            content: bytes | str = await stream.read()
            assert content == b"two"
        assert sorted(await files.listdir("/")) == [".", "..", "1", "2"]
    assert (hosted.files(), hosted.files(OTHER_ORGANIZATION)) == ({"a.csv": b"one"}, {"a.csv": b"two"})
    assert (hosted.folder() / "a.csv").stat().st_mode & 0o077 == 0


Refused = Callable[[asyncssh.SFTPClient], Awaitable[object]]
REFUSED: dict[str, Refused] = {
    "under a final name": lambda files: files.open("/1/b.csv", "xb"),
    "into what is in place": lambda files: files.open("/1/a.csv", "r+b"),
    "over what is in place": lambda files: files.posix_rename(PARTIAL, "/1/a.csv"),
    "by the plain rename": lambda files: files.rename(PARTIAL, "/1/a.csv"),
    "to another organization": lambda files: files.rename(PARTIAL, "/2/a.csv"),
    "a finished file renamed": lambda files: files.rename("/1/a.csv", "/1/z.csv"),
    "a finished file hidden": lambda files: files.rename("/1/a.csv", "/1/.z.csv.0123abcd.partial"),
    "a finished file removed": lambda files: files.remove("/1/a.csv"),
    "an organization without an account": lambda files: files.open("/3/.a.csv.0123abcd.partial", "xb"),
    "no organization": lambda files: files.open("/x/.a.csv.0123abcd.partial", "xb"),
    "outside": lambda files: files.open("/1/../../../x", "xb"),
    "a folder": lambda files: files.mkdir("/1/folder"),
    "a link": lambda files: files.symlink("/etc/passwd", "/1/link"),
    "times": lambda files: files.utime("/1/a.csv", (0, 0)),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_delivery_has_no_need_of_is_refused(hosted: Hosted, case: str) -> None:
    hosted.put("a.csv", b"in place")
    hosted.put(".a.csv.0123abcd.partial", b"new")
    before = hosted.files(), hosted.files(OTHER_ORGANIZATION)
    async with hosted.depositor() as files:
        with pytest.raises(asyncssh.SFTPError):
            await REFUSED[case](files)
    assert (hosted.files(), hosted.files(OTHER_ORGANIZATION)) == before


async def test_the_quota_of_bytes_is_told_and_holds(database_url: str, tmp_path: Path) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox", dropbox_quota_bytes=1_000_000) as hosted:
        async with hosted.depositor() as files:
            await leave(files, bytes(600_000))
            with pytest.raises(asyncssh.SFTPFailure, match=r"quota of 1,000,000 bytes"):
                await leave(files, bytes(600_000), name="/1/b.csv")
            assert set(hosted.files()) == {"a.csv", ".a.csv.0123abcd.partial"}
            await files.remove(PARTIAL)
            # Another organization's is its own, and what is removed makes room.
            await leave(files, bytes(600_000), partial="/2/.a.csv.0123abcd.partial", name="/2/a.csv")
            async with hosted.customer() as theirs:
                await theirs.remove("a.csv")
            await leave(files, bytes(600_000), name="/1/b.csv")
            # What an operator removes by hand makes room, too, after the next look.
            (hosted.folder() / "b.csv").unlink()

            async def has_room() -> bool:
                try:
                    await leave(files, bytes(600_000), name="/1/c.csv")
                except asyncssh.SFTPFailure:
                    await files.remove(PARTIAL)
                    return False
                return True

            await eventually_async(has_room, 10, because="the folder is counted anew")
        assert set(hosted.files()) == {"c.csv"}


async def test_the_quota_of_files_is_told(database_url: str, tmp_path: Path) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox", dropbox_quota_files=2) as hosted:
        async with hosted.depositor() as files:
            for name in ("/1/a.csv", "/1/b.csv"):
                await leave(files, b"x", name=name)
            with pytest.raises(asyncssh.SFTPFailure, match="quota of 2 files"):
                await leave(files, b"x", name="/1/c.csv")
        assert set(hosted.files()) == {"a.csv", "b.csv"}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Give a file system of one megabyte; mounting one needs root."""
    folder = Path(tempfile.mkdtemp(prefix="meterpost-small-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        if mounted.returncode != 0:
            pytest.skip("a small file system can be mounted by root alone")
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


async def test_a_full_disk_is_told_and_leaves_no_half_file(database_url: str, small_disk: Path) -> None:
    async with hosted_folder(database_url, small_disk / "dropbox") as hosted:
        server = hosted.file_server()
        transport = SftpTransport(
            Means(
                Deadlines(timedelta(seconds=5), timedelta(seconds=10)),
                SystemClock(),
                Outbound(parse_networks("127.0.0.0/8, ::1")),
            )
        )
        try:
            answer = await transport.destination(server.settings).send(part(os.urandom(2_000_000)))
            assert answer.verdict is Verdict.RETRY
            assert "space" in answer.detail
            assert server.files() == {}
            assert (await transport.destination(server.settings).send(part(b"small"))).verdict is Verdict.DELIVERED
        finally:
            await transport.aclose()


async def test_old_files_are_removed_and_that_is_on_record(hosted: Hosted) -> None:
    async with hosted.depositor() as files:
        await leave(files, b"old")
        await leave(files, b"new", name="/1/new.csv")
    old = SystemClock().now().timestamp() - 31 * 86_400
    os.utime(hosted.folder() / "a.csv", (old, old))
    leftover = hosted.put(".x.csv.0123abcd.partial", b"half")
    os.utime(leftover, (old, old))
    fresh = hosted.put(".y.csv.0123abcd.partial", b"under way")

    async def recorded() -> bool:
        rows = await hosted.fetch("SELECT removed_by FROM dropbox_file WHERE file_name = 'a.csv'")
        return [row["removed_by"] for row in rows] == ["retention"]

    await eventually_async(recorded, 10, because="the old file is removed")
    assert set(hosted.files()) == {"new.csv", fresh.name}


async def test_a_start_removes_what_is_half_and_corrects_the_records(database_url: str, tmp_path: Path) -> None:
    root = tmp_path / "dropbox"
    async with hosted_folder(database_url, root) as hosted, hosted.depositor() as files:
        await leave(files, b"gone")
        await leave(files, b"stays", name="/1/stays.csv")
    (hosted.folder() / "a.csv").unlink()
    hosted.put("appeared.csv", b"by hand")
    hosted.put(".x.csv.0123abcd.partial", b"half")
    async with hosted_folder(database_url, root, hosted=hosted):
        assert set(hosted.files()) == {"appeared.csv", "stays.csv"}
        rows = await hosted.fetch("SELECT file_name, removed_by FROM dropbox_file ORDER BY 1")
        found = [(row["file_name"], row["removed_by"]) for row in rows]
        assert found == [("a.csv", "unknown"), ("appeared.csv", None), ("stays.csv", None)]


async def test_two_processes_never_serve_one_folder(hosted: Hosted, database_url: str) -> None:
    with pytest.raises(UserError, match="serves"):
        async with hosted_folder(database_url, hosted.root, hosted=hosted):
            pass


async def test_host_keys_can_be_rotated(database_url: str, tmp_path: Path) -> None:
    """Announced beside the first, the next one takes its place when that is taken away."""
    root = tmp_path / "dropbox"
    async with hosted_folder(database_url, root) as hosted:
        [first] = hosted.host_keys
        async with await hosted.connect(known_hosts=([asyncssh.import_public_key(first)], [], [])):
            pass
    first_file = root / "host-keys" / "host-key-1"
    assert first_file.stat().st_mode & 0o777 == 0o600
    second_key = new_key()
    second_file = root / "host-keys" / "host-key-2"
    second_file.touch(mode=0o600)
    second_file.write_bytes(second_key.export_private_key())
    second = public_line(second_key)
    async with hosted_folder(database_url, root, hosted=hosted):
        assert hosted.host_keys == [first, second]
        async with await hosted.connect(known_hosts=([asyncssh.import_public_key(first)], [], [])):
            pass
    first_file.unlink()
    async with hosted_folder(database_url, root, hosted=hosted):
        assert hosted.host_keys == [second]
        async with await hosted.connect(known_hosts=([asyncssh.import_public_key(second)], [], [])):
            pass
        with pytest.raises(asyncssh.HostKeyNotVerifiable):
            await hosted.connect(known_hosts=([asyncssh.import_public_key(first)], [], []))


def test_a_host_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_host_keys(tmp_path)
    (tmp_path / "host-keys" / "host-key-1").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_host_keys(tmp_path)


def test_what_is_no_host_key_is_named(tmp_path: Path) -> None:
    load_host_keys(tmp_path)
    broken = tmp_path / "host-keys" / "zz"
    broken.touch(mode=0o600)
    with pytest.raises(UserError, match="zz"):
        load_host_keys(tmp_path)


def means(hosted: Hosted, folder: Path, host_keys_file: Path | None = None) -> Means:
    key = folder / "delivery-key"
    key.write_bytes(hosted.depositor_key.export_private_key())
    place = HostedFolder("127.0.0.1", hosted.port, key, host_keys_file or hosted.root / PUBLIC_FILE)
    return Means(Deadlines(timedelta(seconds=5), timedelta(seconds=10)), SystemClock(), Outbound(), place)


async def test_a_job_names_no_server_and_reaches_its_organizations_folder(hosted: Hosted, tmp_path: Path) -> None:
    """Loopback is forbidden to jobs here, and allowed to the hosted folder because the operator named it."""
    transport = SftpTransport(means(hosted, tmp_path))
    try:
        settings = {HOSTED: True, "line_end": "crlf", ORGANIZATION_ID: 2}
        assert (await transport.destination(settings).send(part())).verdict is Verdict.DELIVERED
        assert [step.passed async for step in transport.destination(settings).check()] == [True] * 7
        assert list(hosted.files(OTHER_ORGANIZATION)) == ["7-Hourly_1of1.csv"]
        assert hosted.files() == {}
        own = hosted.file_server().settings
        assert (await transport.destination(own).send(part())).reason == "address_forbidden"
        for name in ("host", "port", "directory", "user", "host_keys"):
            with pytest.raises(UserError, match="has no use"):
                transport.destination(settings | {name: "x"})
    finally:
        await transport.aclose()


async def test_nothing_but_the_hosted_folder_is_reached_by_its_way(hosted: Hosted, tmp_path: Path) -> None:
    place = means(hosted, tmp_path).hosted
    assert place is not None
    outbound = place.outbound()
    with pytest.raises(ForbiddenAddress):
        await outbound.resolve("127.0.0.1", hosted.port + 1)
    with pytest.raises(ForbiddenAddress):
        await outbound.resolve("localhost", hosted.port)
    assert await outbound.resolve("127.0.0.1", hosted.port)
    outbound.close()


async def test_where_it_is_not_set_up_jobs_wait_for_the_operator(hosted: Hosted, tmp_path: Path) -> None:
    settings = {HOSTED: True, ORGANIZATION_ID: 1}
    nowhere = means(hosted, tmp_path)._replace(hosted=None)
    for made in (nowhere, means(hosted, tmp_path, host_keys_file=tmp_path / "missing")):
        transport = SftpTransport(made)
        answer = await transport.destination(settings).send(part())
        assert answer[:2] == (Verdict.RETRY, "hosted_not_ready")
        assert [step.passed async for step in transport.destination(settings).check()] == [False]
        await transport.aclose()


async def test_an_organization_without_an_account_stops_the_job(hosted: Hosted, tmp_path: Path) -> None:
    transport = SftpTransport(means(hosted, tmp_path))
    answer = await transport.destination({HOSTED: True, ORGANIZATION_ID: 3}).send(part())
    assert answer.verdict is Verdict.STOP
    await transport.aclose()


async def test_killed_in_the_middle_of_an_upload_it_leaves_no_half_file(platform: Platform) -> None:
    root, port = platform.folder / "dropbox", free_port()
    hosted = Hosted(root, platform.database_url, port)
    await seed_accounts(platform.database_url)
    environment = {
        "METERPOST_DROPBOX_FOLDER": str(root),
        "METERPOST_DROPBOX_LISTEN_PORT": str(port),
        "METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE": str(hosted.write_depositor_keys()),
    }

    async def serves() -> bool:
        try:
            async with hosted.customer():
                return True
        except (OSError, asyncssh.Error):
            return False

    process = platform.start("services.dropbox", environment=environment)
    await eventually_async(serves, 20, because="the folder is served")
    async with await hosted.connect("meterpost-delivery", client_keys=[hosted.depositor_key]) as connection:
        files = await connection.start_sftp_client()
        stream = await files.open(PARTIAL, "xb")
        await stream.write(os.urandom(500_000))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(connection.wait_closed(), 5)
    assert list(hosted.files()) == [".a.csv.0123abcd.partial"]
    process.stop(5)
    again = platform.start("services.dropbox", environment=environment)
    await eventually_async(serves, 20, because="the folder is served again")
    assert hosted.files() == {}
    async with hosted.depositor() as files:
        await leave(files, b"whole")
    again.stop(8)
    assert again.exit_code == 0
    [row] = await hosted.fetch("SELECT file_name FROM dropbox_file")
    assert row["file_name"] == "a.csv", "what happened before the stop is on record"


async def run(*command: str, text: str = "") -> tuple[int, str]:
    """Run a client of OpenSSH to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _none = await asyncio.wait_for(process.communicate(text.encode()), 20)
    return process.returncode or 0, out.decode(errors="replace")


async def test_the_clients_of_openssh(hosted: Hosted, tmp_path: Path) -> None:
    key = new_key()
    key_file, known, got = tmp_path / "key", tmp_path / "known", tmp_path / "got.csv"
    key_file.touch(mode=0o600)
    key_file.write_bytes(key.export_private_key())
    await hosted.add_key("acme", key)
    known.write_text(f"[127.0.0.1]:{hosted.port} {hosted.host_keys[0]}\n")
    content = os.urandom(1_000_000)
    hosted.put("a.csv", content)
    before = hosted.files()
    common = ["-F", "none", "-i", str(key_file), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
    common += ["-o", "IdentitiesOnly=yes"]
    sftp = [installed("sftp"), *common, "-P", str(hosted.port), "-b", "-", "acme@127.0.0.1"]
    code, said = await run(*sftp, text=f"ls -l\nget a.csv {got}\n")
    assert (code, got.read_bytes()) == (0, content), said
    refused = ("put /etc/hostname x.csv", "mkdir x", "ln -s /etc/passwd x", "ln a.csv x", "rename a.csv x")
    for line in (*refused, "chmod 777 a.csv", "rmdir /", "get /etc/passwd", "get ../2/x", "cd /etc"):
        code, said = await run(*sftp, text=line + "\n")
        assert code != 0, (line, said)
    ssh = [installed("ssh"), *common, "-p", str(hosted.port)]
    port = str(hosted.port)
    for more in (
        ["acme@127.0.0.1", "id"],
        ["acme@127.0.0.1"],
        ["-tt", "acme@127.0.0.1"],
        ["-s", "acme@127.0.0.1", "netconf"],
        ["-W", f"127.0.0.1:{port}", "acme@127.0.0.1"],
        ["-N", "-o", "ExitOnForwardFailure=yes", "-R", f"0:127.0.0.1:{port}", "acme@127.0.0.1"],
    ):
        code, said = await run(*ssh, *more)
        assert code != 0, (more, said)
    scp = [installed("scp"), *common, "-P", port]
    assert (await run(*scp, str(key_file), "acme@127.0.0.1:x.csv"))[0] != 0
    assert (await run(*scp, "-O", str(key_file), "acme@127.0.0.1:x.csv"))[0] != 0
    assert (await run(*scp, "-O", "acme@127.0.0.1:a.csv", str(tmp_path / "y")))[0] != 0
    assert hosted.files() == before
