"""The hosted folder in this process, on a database of the test's own, and accounts to log in with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import asyncssh

from services.api import folder_account_store as account_store
from services.core.file_transfer import HOSTED_USER, fingerprint
from services.dropbox.app import serving
from services.dropbox.host_keys import PUBLIC_FILE, public_line
from services.dropbox.settings import DropboxSettings
from services.local.ports import LOOPBACK
from services.platform.clock import Clock, SystemClock
from services.platform.health import Health
from services.platform.passwords import hash_password
from services.platform.postgres import Patience, connect_pool, transaction
from tests.support.file_servers import FileServer
from tests.support.planted import plant, planted

ORGANIZATION, OTHER_ORGANIZATION = 1, 2
CUSTOMER, OTHER_CUSTOMER = "acme", "rival"
PASSWORD = planted("orchid-tandem-vivid-42")


def new_key() -> asyncssh.SSHKey:
    key = asyncssh.generate_private_key("ssh-ed25519")
    plant(key.export_private_key().decode())
    return key


@dataclass
class Hosted:
    """A hosted folder that is served, with two organizations, each with one account by password."""

    root: Path
    database_url: str
    port: int = 0
    depositor_key: asyncssh.SSHKey = field(default_factory=new_key)

    @property
    def host_keys(self) -> list[str]:
        return (self.root / PUBLIC_FILE).read_text().splitlines()

    def folder(self, organization_id: int = ORGANIZATION) -> Path:
        return self.root / "files" / str(organization_id)

    def files(self, organization_id: int = ORGANIZATION) -> dict[str, bytes]:
        """Return what lies in an organization's folder, hidden files too."""
        folder = self.folder(organization_id)
        return {one.name: one.read_bytes() for one in folder.iterdir()} if folder.exists() else {}

    def put(self, name: str, content: bytes, organization_id: int = ORGANIZATION) -> Path:
        """Lay a file into a folder on this machine."""
        self.folder(organization_id).mkdir(parents=True, exist_ok=True)
        file = self.folder(organization_id) / name
        file.write_bytes(content)
        return file

    async def connect(self, user: str = CUSTOMER, **options: Any) -> asyncssh.SSHClientConnection:
        """Connect as a customer by password, or by what is given."""
        if not {"client_keys", "password"} & set(options):
            options["password"] = PASSWORD
        options = {"client_keys": None, "known_hosts": None, "config": None, "agent_path": None} | options
        return await asyncssh.connect(LOOPBACK, self.port, username=user, **options)

    @asynccontextmanager
    async def customer(self, user: str = CUSTOMER, **options: Any) -> AsyncIterator[asyncssh.SFTPClient]:
        async with await self.connect(user, **options) as connection, connection.start_sftp_client() as files:
            yield files

    @asynccontextmanager
    async def depositor(self) -> AsyncIterator[asyncssh.SFTPClient]:
        async with self.customer(HOSTED_USER, client_keys=[self.depositor_key]) as files:
            yield files

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return [dict(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    async def add_key(self, user: str, key: asyncssh.SSHKey) -> str:
        """Let an account log in by a key; returns its fingerprint."""
        line = public_line(key)
        pool = await connect_pool(self.database_url, max_size=1)
        try:
            async with transaction(pool) as connection:
                await account_store.add_key(connection, user, fingerprint(line), line, "a test's")
        finally:
            pool.terminate()
        return fingerprint(line)

    def write_depositor_keys(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.root / "depositor-keys"
        file.write_text(f"# of our delivery\n{public_line(self.depositor_key)} delivery\n")
        return file

    def file_server(self) -> FileServer:
        """Return it as a server that a job sends to."""
        settings = {
            "host": "localhost",
            "port": self.port,
            "user": HOSTED_USER,
            "directory": f"/{ORGANIZATION}",
            "host_keys": self.host_keys,
            "private_key": self.depositor_key.export_private_key().decode(),
        }
        self.folder().mkdir(parents=True, exist_ok=True)
        return FileServer("sftp", settings, self.folder())


async def seed_accounts(database_url: str) -> None:
    """Create two organizations with an account each."""
    hashed = await asyncio.to_thread(hash_password, PASSWORD)
    pool = await connect_pool(database_url, max_size=1)
    try:
        async with transaction(pool) as connection:
            for organization_id, user in ((ORGANIZATION, CUSTOMER), (OTHER_ORGANIZATION, OTHER_CUSTOMER)):
                await connection.execute("INSERT INTO organization VALUES ($1, $2, 1)", organization_id, user.title())
                await account_store.add_account(connection, user, organization_id, hashed)
    finally:
        pool.terminate()


@asynccontextmanager
async def hosted_folder(
    database_url: str, root: Path, *, hosted: Hosted | None = None, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Hosted]:
    """Serve a hosted folder; once more what was served before, where that is given."""
    if hosted is None:
        hosted = Hosted(root, database_url)
        await seed_accounts(database_url)
    keys = hosted.write_depositor_keys()
    quick = {"dropbox_look_seconds": 0.1, "dropbox_prune_seconds": 0.1, "dropbox_failure_delay_seconds": 0.05}
    wanted = DropboxSettings(
        dropbox_folder=root, dropbox_listen_port=0, dropbox_depositor_keys_file=keys, **(quick | settings)
    )
    stopping = asyncio.Event()
    pool = await connect_pool(database_url, max_size=4)
    try:
        async with serving(wanted, pool, Patience(Health(), stopping), clock or SystemClock()) as port:
            hosted.port = port
            yield hosted
    finally:
        stopping.set()
        pool.terminate()
