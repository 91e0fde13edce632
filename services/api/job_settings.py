"""What a job may be told: every rule that a person can break, with a sentence that says how to mend it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from services.api.file_settings import FILE_TRANSPORTS, check_file_settings
from services.core.schedule import check_pair
from services.platform.errors import UserError

MAX_NAME_LENGTH = 120


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Everything about a job that an edit can change; one version of it."""

    name: str
    frequency_minutes: int
    resolution_minutes: int
    site_ids: tuple[int, ...] | None
    """None: all sites, evaluated at run time."""
    transport: str
    transport_settings: Mapping[str, Any] = field(repr=False)
    """What is secret of it stands under `secrets`, and nowhere else."""
    data: str = "meters_measurements"

    def check(self) -> None:
        """Raise UserError for the first rule that is broken. Whether the sites exist, the store checks."""
        if not self.name.strip():
            raise UserError("a job needs a name")
        if len(self.name) > MAX_NAME_LENGTH:
            raise UserError(f"the job's name has {len(self.name)} characters, {MAX_NAME_LENGTH} are allowed")
        try:
            check_pair(self.frequency_minutes, self.resolution_minutes)
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.site_ids is not None and not self.site_ids:
            raise UserError("a job needs at least one site, or all sites")
        if self.transport in FILE_TRANSPORTS:
            check_file_settings(self.transport, self.transport_settings)
        elif self.transport != "https":
            allowed = ", ".join(("https", *FILE_TRANSPORTS))
            raise UserError(f"the transport {self.transport!r} is not known; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created; `starts_at` None: now, by the platform's clock."""

    organization_id: int
    settings: JobSettings
    starts_at: datetime | None = None


def https_settings(url: str, ca_pem: str | None) -> dict[str, Any]:
    """Return the transport settings of an HTTPS receiver.

    `ca_pem` holds the certificates to trust instead of the system's; None: the system's. Raises UserError.
    """
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the URL {url!r} cannot be understood: {error}") from None
    if parts.scheme != "https":
        raise UserError(f"the URL {url!r} must begin with https:// (readings are not sent over a plain connection)")
    if not host or any(character.isspace() for character in url):
        raise UserError(f"the URL {url!r} names no host")
    if parts.username is not None or parts.password is not None:
        raise UserError("the URL must not hold a user name or password: it is shown in lists")
    if parts.fragment:
        raise UserError(f"the URL {url!r} must not have a part behind #: it is never sent")
    if ca_pem is None:
        return {"url": url}
    try:
        x509.load_pem_x509_certificates(ca_pem.encode())
    except ValueError:
        message = "the CA file holds no certificate as PEM; its text begins with -----BEGIN CERTIFICATE-----"
        raise UserError(message) from None
    return {"url": url, "ca_pem": ca_pem}
