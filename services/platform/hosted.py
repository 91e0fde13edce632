"""Where the hosted folder is, for those who leave files in it: told by the operator alone, never by a job."""

from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.core.file_transfer import fingerprint
from services.platform.errors import MeterpostError
from services.platform.outbound import ForbiddenAddress, Outbound, Target, parse_networks
from services.platform.settings import ENVIRONMENT_PREFIX


class HostedNotReady(MeterpostError):  # noqa: N818 - a state of the platform, reads as one
    """The hosted folder is not set up here, or its keys cannot be read: the operator's to mend, no job's."""


class HostedFolder(NamedTuple):
    """The hosted folder's address, and the files of the keys by which both sides know each other."""

    host: str
    port: int
    key_file: Path
    host_keys_file: Path

    def private_key(self) -> str:
        """Return the key to log in with. Raises HostedNotReady. Blocks for a moment."""
        return _read(self.key_file, "METERPOST_DROPBOX_KEY_FILE")

    def host_keys(self) -> list[str]:
        """Return the server's public keys, as they are now. Raises HostedNotReady. Blocks for a moment."""
        return _read_host_keys(self.host_keys_file)

    def outbound(self) -> Outbound:
        """Return a way to this address, wherever it lies, and to no other."""
        return _OutboundTo(self.host, self.port)


class HostedAddress(NamedTuple):
    """Where customers reach the hosted folder, and the file of the keys by which they know it."""

    host: str
    port: int
    host_keys_file: Path

    def host_keys(self) -> list[str]:
        """Return the server's public keys, as they are now. Raises HostedNotReady. Blocks for a moment."""
        return _read_host_keys(self.host_keys_file)


class HostedAddressSettings(BaseSettings):
    """What customers are told of the hosted folder; without a host, nothing."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    dropbox_public_host: str | None = Field(
        None, min_length=1, description="The name by which customers reach the hosted folder; unset: they are not told."
    )
    dropbox_public_port: int = Field(2022, ge=1, le=65_535, description="The port that they reach.")
    dropbox_host_keys_file: Path | None = Field(
        None, description="The hosted folder's public keys, one a line: its file host-keys.pub."
    )

    def hosted_address(self) -> HostedAddress | None:
        """Return what customers are told; None where host or keys are not known."""
        if self.dropbox_public_host is None or self.dropbox_host_keys_file is None:
            return None
        return HostedAddress(self.dropbox_public_host, self.dropbox_public_port, self.dropbox_host_keys_file)


class HostedFolderSettings(BaseSettings):
    """Where the hosted folder is; without a host there is none."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    dropbox_host: str | None = Field(None, min_length=1, description="Where the hosted folder listens; unset: none.")
    dropbox_port: int = Field(2022, ge=1, le=65_535, description="Its port.")
    dropbox_key_file: Path | None = Field(
        None, description="The private key by which files are left there, in OpenSSH's form."
    )
    dropbox_host_keys_file: Path | None = Field(
        None, description="The hosted folder's public keys, one a line: its file host-keys.pub."
    )

    def hosted_folder(self) -> HostedFolder | None:
        """Return the hosted folder; None where there is none, or not all of it is told."""
        if self.dropbox_host is None or self.dropbox_key_file is None or self.dropbox_host_keys_file is None:
            return None
        return HostedFolder(self.dropbox_host, self.dropbox_port, self.dropbox_key_file, self.dropbox_host_keys_file)


class _OutboundTo(Outbound):
    """Leads to one host and port that the operator named, whatever its address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(parse_networks("0.0.0.0/0, ::/0"))
        self._only = (host, port)

    async def resolve(self, host: str, port: int) -> list[Target]:
        """Return the addresses of that host; raises ForbiddenAddress for any other."""
        if (host, port) != self._only:
            raise ForbiddenAddress(f"{host}:{port} is not where the hosted folder is")
        return await super().resolve(host, port)


def _read_host_keys(file: Path) -> list[str]:
    text = _read(file, "METERPOST_DROPBOX_HOST_KEYS_FILE")
    lines = [" ".join(line.split()[:2]) for line in text.splitlines() if line.strip() and line[0] != "#"]
    if not lines:
        raise HostedNotReady(f"METERPOST_DROPBOX_HOST_KEYS_FILE: {file} holds no key")
    for number, line in enumerate(lines, 1):
        try:
            fingerprint(line)
        except (ValueError, IndexError):
            raise HostedNotReady(f"METERPOST_DROPBOX_HOST_KEYS_FILE: {file}: key {number} is no public key") from None
    return lines


def _read(file: Path, setting: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise HostedNotReady(f"{setting}: {file} cannot be read: {reason}") from None
