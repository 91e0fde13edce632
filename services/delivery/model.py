"""The values that delivery works with: what a job says, what a run and a part are."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from services.core.schedule import Slot

MEASUREMENTS = "meters_measurements"
"""The data of a job that exports closed windows."""
NOWHERE = ""
"""The destination of a job whose settings name none, or cannot be read."""


class JobKey(NamedTuple):
    """Which job."""

    organization_id: int
    job_id: int


class Claim(NamedTuple):
    """The right to work on a job, until somebody else claims it with a higher epoch."""

    job: JobKey
    epoch: int
    destination: str
    is_failing: bool = False
    """Its last attempt failed."""


class Busy(NamedTuple):
    """What has as many slots as it may, and is passed over when jobs are claimed."""

    addresses: Collection[str] = ()
    accounts: Collection[tuple[int, str]] = ()
    """Of an organization at an address."""
    organizations: Collection[int] = ()
    failing_organizations: Collection[int] = ()
    """Of these the jobs that fail."""
    is_failing_busy: bool = False
    """Whoever's jobs that fail."""


class Version(NamedTuple):
    """A job's version, in force for the slots that begin at or after `effective_from`."""

    version: int
    effective_from: datetime
    name: str
    data: str
    frequency_minutes: int
    resolution_minutes: int
    """NO_RESOLUTION: a catalog."""
    site_ids: tuple[int, ...] | None
    transport: str
    settings: Mapping[str, Any]
    """Secret ones sealed."""
    has_manifest: bool = False


class Pause(NamedTuple):
    """Slots that begin in it are skipped; `resumed_from` None: it goes on."""

    paused_from: datetime
    resumed_from: datetime | None


class Job(NamedTuple):
    """What is known of a job at the beginning of a slice of work; `versions` in their order."""

    key: JobKey
    is_deleted: bool
    planned_until: datetime
    seen_version: int
    """The newest version when the next slot was determined."""
    versions: Sequence[Version]
    pauses: Sequence[Pause]
    closed_until: Mapping[int, datetime]
    """Up to which start all windows are closed, by resolution in minutes; without resolution the platform's clock."""
    unfinished_runs: int
    requests: Sequence["Request"] = ()
    """What somebody asked for and was not done yet, in the order of asking."""

    def version(self, number: int) -> Version:
        """Return the version that a run has pinned."""
        return next(version for version in self.versions if version.version == number)

    def newest(self, transport: str) -> Version:
        """Return the newest version with this transport: where and how to connect.

        What a run contains is pinned, but a repaired address or credential must reach the runs that wait for it.
        """
        return [version for version in self.versions if version.transport == transport][-1]


class Request(NamedTuple):
    """What somebody asked of a job beside its schedule; see export_request for what each kind means."""

    request_id: int
    kind: str
    slot_start: datetime | None
    range_start: datetime | None
    range_end: datetime | None
    planned_until: datetime | None
    """A backfill has planned everything before this."""


class Run(NamedTuple):
    """An unfinished run of a job; not frozen: its parts are not known yet."""

    job: JobKey
    slot: Slot
    job_version: int
    catalog_revision: int
    is_frozen: bool
    part_count: int
    """Without the manifest."""
    planned_at: datetime
    row_count: int = 0
    resend_count: int = 0


class RowRange(NamedTuple):
    """`row_count` rows of a run from (first_measured_at, first_meter_id) on, in their order."""

    first_measured_at: datetime
    first_meter_id: int
    row_count: int
    first_record: str | None = None
    """Of a catalog the key, instead of time and meter, as text."""


class FrozenPart(NamedTuple):
    """A part of a run as its first rendering fixed it."""

    rows: RowRange
    byte_count: int
    sha256: bytes


class Manifest(NamedTuple):
    """What a run ends with: its bytes, and its place in the chain of the job's manifests."""

    number: int
    body: bytes
    sha256: bytes


class WaitingPart(NamedTuple):
    """A part that is to be sent, and its history."""

    number: int
    frozen: FrozenPart
    attempt_count: int
    next_attempt_at: datetime | None
    failed_in_a_row: int = 0
    """Since the last success, resume or request: the next delay follows from it."""
    manifest_body: bytes | None = None
    """None: an ordinary part."""
