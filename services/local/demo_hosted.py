"""The demo's hosted folder: its keys, its customer's account, and what the processes are told of it."""

from pathlib import Path
from typing import Any, NamedTuple

from services.api import folder_account_store as account_store
from services.core.file_transfer import HOSTED, fingerprint
from services.dropbox.host_keys import PUBLIC_FILE, load_host_keys
from services.local.demo_catalog import ORGANIZATION
from services.local.ports import LOOPBACK, remembered_port
from services.local.sftp_receiver import ensure_key
from services.local.supervised import Service
from services.platform.postgres import Pool, transaction

CUSTOMER = "demo"


class HostedDemo(NamedTuple):
    """Where it is, and whose keys open it."""

    data_folder: Path
    port: int
    customer_key: str
    """Its public half."""

    @property
    def _keys(self) -> Path:
        return self.data_folder / "certificates"

    @property
    def folder(self) -> Path:
        """Where the customer's copies arrive."""
        return self.data_folder / "received" / "hosted"

    @property
    def environment(self) -> dict[str, str]:
        """What the service, and delivery, find in their environment."""
        root = self.data_folder / "dropbox"
        return {
            "METERPOST_DROPBOX_FOLDER": str(root),
            "METERPOST_DROPBOX_LISTEN_PORT": str(self.port),
            "METERPOST_DROPBOX_DEPOSITOR_KEYS_FILE": str(self._keys / "hosted-depositor-keys"),
            "METERPOST_DROPBOX_HOST": LOOPBACK,
            "METERPOST_DROPBOX_PORT": str(self.port),
            "METERPOST_DROPBOX_PUBLIC_HOST": LOOPBACK,
            "METERPOST_DROPBOX_PUBLIC_PORT": str(self.port),
            "METERPOST_DROPBOX_KEY_FILE": str(self._keys / "hosted-depositor-key"),
            "METERPOST_DROPBOX_HOST_KEYS_FILE": str(root / PUBLIC_FILE),
        }

    def customer(self) -> Service:
        """Return the process that fetches as a customer does."""
        root = self.data_folder / "dropbox"
        arguments = [
            "services.local.hosted_customer",
            *("--port", str(self.port), "--user", CUSTOMER, "--key", str(self._keys / "hosted-customer-key")),
            *("--host-keys", str(root / PUBLIC_FILE), "--folder", str(self.folder)),
        ]
        return Service("customer-hosted", arguments, self.data_folder, {})

    def endpoint(self) -> dict[str, Any]:
        """Return what programs are told of it, to fetch from it and, as delivery, to leave files there."""
        told = self.environment
        return {
            "host": LOOPBACK,
            "port": self.port,
            "user": CUSTOMER,
            "customer_key_file": str(self._keys / "hosted-customer-key"),
            "key_file": told["METERPOST_DROPBOX_KEY_FILE"],
            "host_keys_file": told["METERPOST_DROPBOX_HOST_KEYS_FILE"],
            "folder": str(self.folder),
        }


def hosted_demo(data_folder: Path) -> HostedDemo:
    """Return the hosted folder of the instance in `data_folder`, with the keys that it had before. Blocks."""
    keys = data_folder / "certificates"
    depositor_key = ensure_key(keys / "hosted-depositor-key")
    (keys / "hosted-depositor-keys").write_text(f"{depositor_key} delivery\n", encoding="ascii")
    # Made here already, so that delivery knows them whichever process is up first.
    load_host_keys(data_folder / "dropbox")
    port = remembered_port(data_folder / "hosted-port.json", configured=None)
    return HostedDemo(data_folder, port, ensure_key(keys / "hosted-customer-key"))


async def ensure_customer(pool: Pool, public_key: str) -> None:
    """Give the demo's organization its account, by key. Raises Unavailable."""
    async with transaction(pool) as connection:
        organization_id = await connection.fetchval(
            "SELECT organization_id FROM organization WHERE name = $1", ORGANIZATION
        )
        await account_store.add_account(connection, CUSTOMER, organization_id, None)
        await account_store.add_key(connection, CUSTOMER, fingerprint(public_key), public_key, "the demo's customer")


HOSTED_JOB = {HOSTED: True}
"""What a job says that goes there."""
