"""What a job may be told: every rule that a person can break, with a sentence that says how to mend it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from services.api.file_settings import FILE_TRANSPORTS
from services.api.job_secrets import AUTH_KINDS, SecretChanges
from services.core.catalog_records import CATALOG
from services.core.schedule import check_schedule
from services.platform.errors import UserError

MAX_NAME_LENGTH = 120
MEASUREMENTS = "meters_measurements"
DATA = (MEASUREMENTS, CATALOG)
TRANSPORTS = ("https", *FILE_TRANSPORTS)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Everything about a job that an edit can change; one version of it."""

    name: str
    frequency_minutes: int
    resolution_minutes: int
    """NO_RESOLUTION: a catalog."""
    site_ids: tuple[int, ...] | None
    """None: all sites, evaluated at run time."""
    transport: str
    transport_settings: Mapping[str, Any]
    """Public settings as they are; secret ones sealed, under `sealed` (see services.core.transport_secrets)."""
    data: str = MEASUREMENTS
    manifest: bool = False
    """Whether each run ends with a manifest."""

    def check(self) -> None:
        """Raise UserError for the first rule that is broken. The store checks sites, destination and secrets."""
        if not self.name.strip():
            raise UserError("a job needs a name")
        if len(self.name) > MAX_NAME_LENGTH:
            raise UserError(f"the job's name has {len(self.name)} characters, {MAX_NAME_LENGTH} are allowed")
        if self.data not in DATA:
            raise UserError(f"there is no data called {self.data!r} to export; allowed: {', '.join(DATA)}")
        try:
            check_schedule(self.data, self.frequency_minutes, self.resolution_minutes)
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.site_ids is not None and not self.site_ids:
            raise UserError("a job needs at least one site, or all sites")
        if self.transport not in TRANSPORTS:
            allowed = ", ".join(TRANSPORTS)
            raise UserError(f"the transport {self.transport!r} is not known; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created; `starts_at` None: now, by the platform's clock."""

    organization_id: int
    settings: JobSettings
    starts_at: datetime | None = None
    secrets: SecretChanges = field(default_factory=dict, repr=False)
    """Secret settings in the clear; the store seals them."""


@dataclass(frozen=True, slots=True)
class HttpsAccess:
    """How we show an HTTPS receiver who we are; passwords, tokens and keys are secrets, given apart."""

    auth: str = "none"
    username: str | None = None
    client_certificate: str | None = None


def https_settings(url: str, ca_pem: str | None, access: HttpsAccess | None = None) -> dict[str, Any]:
    """Return the public transport settings of an HTTPS receiver.

    `ca_pem` holds the certificates to trust instead of the system's; None: the system's. Raises UserError.
    """
    settings: dict[str, Any] = {"url": _checked_url(url)}
    if ca_pem is not None:
        settings["ca_pem"] = _checked_certificates(ca_pem, "CA file")
    return settings | ({} if access is None else _access_settings(access))


def _access_settings(access: HttpsAccess) -> dict[str, Any]:
    if access.auth not in AUTH_KINDS:
        raise UserError(f"the authentication {access.auth!r} is not known; allowed: {', '.join(AUTH_KINDS)}")
    if (access.auth == "basic") != (access.username is not None):
        raise UserError("a user name is needed with --auth basic, and only there")
    settings: dict[str, Any] = {}
    if access.auth != "none":
        settings["auth"] = access.auth
    if access.username is not None:
        settings["username"] = access.username
    if access.client_certificate is not None:
        settings["client_certificate"] = _checked_certificates(access.client_certificate, "client certificate's file")
    return settings


def _checked_url(url: str) -> str:
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
    return url


def _checked_certificates(pem: str, where: str) -> str:
    from cryptography import x509  # noqa: PLC0415 - few commands need it, and it takes long

    try:
        x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        message = f"the {where} holds no certificate as PEM; its text begins with -----BEGIN CERTIFICATE-----"
        raise UserError(message) from None
    return pem
