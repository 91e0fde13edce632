"""The demo's SFTP and FTPS receivers: their accounts and keys, their processes, and what its jobs say of them."""

import base64
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from services.core.webhooks import SECRET_PREFIX
from services.local.certificates import CertificateFiles
from services.local.ports import remembered_port
from services.local.sftp_receiver import ensure_key
from services.local.supervised import Service

USER = "demo"


class FileReceiver(NamedTuple):
    """A receiver that is to be started."""

    transport: str
    service: Service
    settings: dict[str, Any]
    """What a job says of it."""
    secrets: dict[str, str]
    """With what a job logs in."""
    folder: Path
    """Where its files arrive."""

    def endpoint(self) -> dict[str, Any]:
        """Return what programs are told of it; keys and passwords are in the jobs."""
        shown = {name: value for name, value in self.settings.items() if name != "ca_pem"}
        return {**shown, "folder": str(self.folder)}


def ensure_signing_secret(file: Path) -> str:
    """Return the secret by which the parts to the HTTPS receiver are signed, making it at the first start."""
    if not file.exists():
        file.touch(mode=0o600)
        secret = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
        file.write_text(f"{SECRET_PREFIX}{secret}\n", encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def file_receivers(data_folder: Path, certificates: CertificateFiles) -> list[FileReceiver]:
    """Return the receivers of the instance in `data_folder`, with the accounts that they had before."""
    return [_sftp(data_folder, data_folder / "certificates"), _ftps(data_folder, certificates)]


def _sftp(data_folder: Path, keys: Path) -> FileReceiver:
    port = remembered_port(data_folder / "sftp-port.json", configured=None)
    folder = data_folder / "received" / "sftp"
    host_key, public_key = ensure_key(keys / "sftp-host-key"), ensure_key(keys / "sftp-client-key")
    authorized = keys / "sftp-authorized-keys"
    authorized.write_text(public_key + "\n", encoding="ascii")
    arguments = [
        "services.local.sftp_receiver",
        *("--folder", str(folder), "--port", str(port), "--host-key", str(keys / "sftp-host-key")),
        *("--user", USER, "--authorized-keys", str(authorized)),
    ]
    settings = {
        "host": "localhost",
        "port": port,
        "user": USER,
        "host_keys": [host_key],
        "public_key": public_key,
    }
    private = {"private_key": (keys / "sftp-client-key").read_text(encoding="ascii")}
    return FileReceiver("sftp", Service("receiver-sftp", arguments, data_folder, {}), settings, private, folder)


def _ftps(data_folder: Path, certificates: CertificateFiles) -> FileReceiver:
    port = remembered_port(data_folder / "ftps-port.json", configured=None)
    folder = data_folder / "received" / "ftps"
    password_file = certificates.authority.with_name("ftps-password")
    if not password_file.exists():
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(18) + "\n", encoding="ascii")
    arguments = [
        "services.local.ftps_receiver",
        *("--folder", str(folder), "--port", str(port), "--user", USER, "--password-file", str(password_file)),
        *("--certificate", str(certificates.server), "--key", str(certificates.server_key)),
    ]
    settings = {
        "host": "localhost",
        "port": port,
        "user": USER,
        "ca_pem": certificates.authority.read_text(encoding="ascii"),
    }
    private = {"password": password_file.read_text(encoding="ascii").strip()}
    return FileReceiver("ftps", Service("receiver-ftps", arguments, data_folder, {}), settings, private, folder)
