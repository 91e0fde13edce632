"""The manifest of a run: what its parts are, and the hash of the manifest before it.

A run of very many parts has several, one after the other, so that none is larger than what one request may be.

Contract: schemas/http/manifest.v1.schema.json. Its bytes are rendered once, when the run is frozen, and kept.
"""

from collections.abc import Sequence

import msgspec

MAX_LISTED_PARTS = 2_000
"""In one manifest: with the longest names it is smaller than 1 MB."""


class ManifestPart(msgspec.Struct, frozen=True):
    """One part: `id` as in `webhook-id`, `file` as the file is called, SHA-256 in hexadecimal digits."""

    part: int
    id: str
    file: str
    rows: int
    bytes: int
    sha256: str


class Completeness(msgspec.Struct, frozen=True):
    """How many of the expected reading intervals went into the run's rows.

    A row that is absent counts for neither, nor does one of a meter that reports less often than the resolution.
    """

    intervals_present: int
    intervals_expected: int


class Section(msgspec.Struct, frozen=True):
    """Which of a run's manifests it is: `number` of `of`, from 1. It lists the parts that follow those of the last."""

    number: int
    of: int


class PreviousManifest(msgspec.Struct, frozen=True):
    """The manifest that the job made before this one: of which run, and the SHA-256 of its bytes."""

    run: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """Everything about a run."""

    manifest: int
    """Version of this form: 1."""
    number: int
    """Of the job's manifests, from 1, in the order in which their runs were fixed."""
    job_id: int
    job_name: str
    run: str
    data: str
    resolution_minutes: int | None
    """None: a catalog."""
    window_start: str
    window_end: str
    rows: int
    bytes: int
    parts: Sequence[ManifestPart]
    completeness: Completeness | None
    previous: PreviousManifest | None
    section: Section | msgspec.UnsetType = msgspec.UNSET
    """Absent: the only manifest of its run, which lists all parts."""


def render_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest: JSON in UTF-8, indented for people, with a line end at the end."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
