"""A job as it comes in and goes out. Secrets come in by name and never go out: it is only shown which are set."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from services.api.file_settings import new_private_key, public_half
from services.api.http.decoding import Id, Instant, Name
from services.api.http.problems import invalid
from services.api.job_queries import Job
from services.api.job_settings import HttpsAccess, JobSettings, https_settings
from services.core.catalog_records import CATALOG
from services.core.file_transfer import HOSTED, parse_host_key
from services.core.schedule import (
    CATALOG_FREQUENCY_MINUTES,
    FREQUENCY_NAMES,
    NO_RESOLUTION,
    check_schedule,
    frequency_name,
)
from services.core.transport_secrets import public_settings

Frequency = Literal["day", "hour", "15min", "5min"]
Data = Literal["meters_measurements", "catalog"]
Resolution = Annotated[
    Literal[1, 5, 15, 60] | None, msgspec.Meta(description="Minutes; of measurements only, which need one.")
]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]
Pem = Annotated[str, msgspec.Meta(max_length=200_000, description="Certificates as PEM.")]
Secret = Annotated[str, msgspec.Meta(max_length=65_536)]
Secrets = Annotated[
    dict[str, Secret | None],
    msgspec.Meta(
        max_length=40,
        description="By name: password, token, private_key, client_key, header:NAME, signing_secret (adds one). "
        "null removes one. Those that are not named stay. They are never shown.",
    ),
]
SiteIds = Annotated[list[Id], msgspec.Meta(min_length=1, max_length=10_000)]


class Https(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="transport", tag="https"):
    """JSON over HTTPS."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]
    ca_pem: Pem | None = None
    auth: Literal["none", "basic", "bearer"] = "none"
    username: Line | None = None
    client_certificate: Pem | None = None


class Sftp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="transport", tag="sftp"):
    """CSV over SFTP. Without the secret password or private_key a key is made, and its public half shown."""

    host: Line
    user: Line
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 22
    directory: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    line_end: Literal["lf", "crlf"] = "lf"
    defuse_formulas: bool = True
    host_keys: Annotated[list[Line], msgspec.Meta(max_length=10)] = msgspec.field(default_factory=list)


class Ftps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="transport", tag="ftps"):
    """CSV over FTPS."""

    host: Line
    user: Line
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] | None = None
    directory: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    line_end: Literal["lf", "crlf"] = "lf"
    defuse_formulas: bool = True
    tls: Literal["explicit", "implicit"] = "explicit"
    ca_pem: Pem | None = None


class Hosted(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="transport", tag="hosted"
):
    """CSV into the folder that we host, which the organization's folder accounts fetch from. It takes no secrets."""

    line_end: Literal["lf", "crlf"] = "lf"
    defuse_formulas: bool = True


Destination = Https | Sftp | Ftps | Hosted


class JobBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job to be created."""

    name: Name
    data: Annotated[Data, msgspec.Meta(description="catalog: sites, devices, inputs and meters, every day.")] = (
        "meters_measurements"
    )
    site_ids: SiteIds | None = None
    frequency: Frequency
    resolution_minutes: Resolution = None
    destination: Destination
    secrets: Secrets = msgspec.field(default_factory=dict)
    manifest: bool = False
    starts_at: Annotated[
        Instant | None, msgspec.Meta(description="The first slot begins here or later. null: now; earlier: a backfill.")
    ] = None


class JobChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to change from the next slot on; what is left out stays."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    site_ids: SiteIds | msgspec.UnsetType | None = msgspec.UNSET
    frequency: Frequency | msgspec.UnsetType = msgspec.UNSET
    resolution_minutes: Resolution | msgspec.UnsetType = msgspec.UNSET
    destination: Destination | msgspec.UnsetType = msgspec.UNSET
    secrets: Secrets = msgspec.field(default_factory=dict)
    manifest: bool | msgspec.UnsetType = msgspec.UNSET


class JobShown(msgspec.Struct, frozen=True):
    """A job with its newest settings, in force for slots that begin at `effective_from` or later."""

    job_id: int
    name: str
    data: str
    state: Literal["active", "paused", "stopped", "paused by failures"]
    site_ids: list[int] | None
    frequency: str
    resolution_minutes: int | None
    destination: dict[str, Any]
    secrets: list[str]
    public_key: str | None
    manifest: bool
    version: int
    starts_at: Instant
    effective_from: Instant
    created_at: Instant
    next_slot_start: Instant | None
    paused_from: Instant | None
    stopped_at: Instant | None
    stopped_reason: str | None
    stopped_detail: str | None
    failing_since: Instant | None


def shown(job: Job) -> JobShown:
    """Return a job as it is shown."""
    settings = job.settings
    public = dict(public_settings(settings.transport_settings))
    secrets = sorted(public.pop("secrets", {}))
    transport = "hosted" if public.pop(HOSTED, False) else settings.transport
    return JobShown(
        job_id=job.job_id,
        name=settings.name,
        data=settings.data,
        state=job.state,
        site_ids=None if settings.site_ids is None else list(settings.site_ids),
        frequency=frequency_name(settings.frequency_minutes),
        resolution_minutes=settings.resolution_minutes or None,
        public_key=public.pop("public_key", None),
        destination={"transport": transport, **public},
        secrets=secrets,
        manifest=settings.manifest,
        version=job.version,
        starts_at=job.starts_at,
        effective_from=job.effective_from,
        created_at=job.created_at,
        next_slot_start=job.next_slot_start,
        paused_from=job.paused_from,
        stopped_at=job.stopped_at,
        stopped_reason=job.stopped_reason,
        stopped_detail=job.stopped_detail,
        failing_since=job.failing_since,
    )


def new_settings(body: JobBody) -> tuple[JobSettings, dict[str, str | None]]:
    """Return what a new job is told, and its secrets. Raises Problem, or UserError for a destination that is wrong."""
    transport, public, secrets = to_stored(body.destination, body.secrets, {})
    frequency = FREQUENCY_NAMES[body.frequency]
    resolution = checked_resolution(body.data, frequency, body.resolution_minutes)
    sites = None if body.site_ids is None else tuple(sorted(set(body.site_ids)))
    settings = JobSettings(*(body.name, frequency, resolution, sites, transport, public, body.data, body.manifest))
    return settings, secrets


def transport_of(destination: Destination) -> str:
    """Return the transport that delivers to a destination."""
    return "https" if isinstance(destination, Https) else "ftps" if isinstance(destination, Ftps) else "sftp"


def to_stored(
    destination: Destination, given: Mapping[str, str | None], before: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, str | None]]:
    """Return transport, public settings and secret changes of a destination.

    `before`: the settings of the same transport that it replaces.
    Raises UserError for settings that cannot be right.
    """
    secrets: dict[str, str | None] = dict(given)
    if isinstance(destination, Https):
        access = HttpsAccess(destination.auth, destination.username, destination.client_certificate)
        return "https", https_settings(destination.url, destination.ca_pem, access), secrets
    public = {name: value for name, value in msgspec.structs.asdict(destination).items() if value is not None}
    if isinstance(destination, Ftps):
        return "ftps", public, secrets
    if isinstance(destination, Hosted):
        # What a server of the customer's was logged in to with, is forgotten.
        return "sftp", public | {HOSTED: True}, dict.fromkeys(before.get("sealed", {})) | secrets
    try:
        public["host_keys"] = [parse_host_key(line) for line in destination.host_keys]
    except ValueError as error:
        raise invalid("destination.host_keys", str(error)) from None
    kept = before.get("sealed", {})
    if secrets.get("private_key"):
        public["public_key"] = public_half(str(secrets["private_key"]))
    elif "private_key" in kept and "private_key" not in secrets and "public_key" in before:
        public["public_key"] = before["public_key"]
    elif not secrets.get("password") and not kept:
        key = new_private_key()
        secrets["private_key"], public["public_key"] = key, public_half(key)
    return "sftp", public, secrets


def checked_resolution(data: str, frequency: int, resolution: int | None) -> int:
    """Return the resolution as it is stored. Raises Problem, naming what is allowed, for what is not offered."""
    try:
        check_schedule(data, frequency, resolution)
    except ValueError as error:
        is_frequency = data == CATALOG and frequency != CATALOG_FREQUENCY_MINUTES
        raise invalid("frequency" if is_frequency else "resolution_minutes", str(error)) from None
    return resolution or NO_RESOLUTION
