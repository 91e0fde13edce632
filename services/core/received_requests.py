"""Whether a POST of a part is what its headers say: ids, names, hash, rows, contract and signature. Pure."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.core.part_names import PartName, read_part_name
from services.core.parts import manifest_id
from services.core.received_content import Content, outside_window, read_part
from services.core.received_manifest import ReceivedManifest, read_manifest
from services.core.times import from_epoch_milliseconds, iso_seconds
from services.core.webhooks import SIGNATURE_HEADER, signature

TIMESTAMP_TOLERANCE = timedelta(minutes=5)
"""How far the time of signing may be from that of arrival, by Standard Webhooks."""
SHOWN_HEADERS = ("webhook-id", "webhook-timestamp", SIGNATURE_HEADER, "content-type")
OUR_PREFIX = "meterpost-"


class Request(NamedTuple):
    """What the headers say, consistent in themselves."""

    part_id: str
    name: PartName
    file_name: str
    part: int | None
    """None: a manifest."""
    row_count: int
    sha256: str


class ReceivedBody(NamedTuple):
    """What came in the body: one of the two."""

    content: Content | None
    manifest: ReceivedManifest | None


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return, by names in small letters, the headers that prove something, and none that logs in."""
    small = {name.lower(): value for name, value in headers.items()}
    return {name: small[name] for name in small if name in SHOWN_HEADERS or name.startswith(OUR_PREFIX)}


def read_request(headers: Mapping[str, str]) -> Request:
    """Return what the headers say. Raises ValueError where one is missing or contradicts another."""
    said = _Headers(headers)
    file_name = said("meterpost-filename")
    try:
        name = read_part_name(file_name)
    except ValueError as error:
        raise ValueError(f"Meterpost-Filename: {error}") from None
    part_id, sha256, rows = said("webhook-id"), said("meterpost-content-sha256"), said("meterpost-rows")
    number = "manifest" if name.part is None else str(name.part)
    expected = {
        "meterpost-job": str(name.job_id),
        "meterpost-run": name.run,
        "meterpost-part": number,
        "meterpost-window-start": iso_seconds(name.start),
        "meterpost-window-end": iso_seconds(name.end),
    }
    if name.part is not None:
        expected["meterpost-parts"] = str(name.parts)
    for header, value in expected.items():
        if said(header) != value:
            raise ValueError(f"the header {header} is {said(header)[:80]!r}, the name {file_name} says {value!r}")
    tail = f"-{name.run}-part{name.part}"
    if name.part is None:
        tail = manifest_id("", name.job_id, name.start, name.section, name.sections)
    if not part_id.endswith(tail) or part_id == tail:
        raise ValueError(f"the header webhook-id is {part_id[:120]!r}, which does not end with {tail!r}")
    if not rows.isascii() or not rows.isdecimal():
        raise ValueError(f"the header meterpost-rows is {rows[:40]!r}, which is no number")
    return Request(part_id, name, file_name, name.part, int(rows), sha256)


def check_hash(request: Request, body: bytes) -> None:
    """Raise ValueError where the body does not have the hash that the headers say."""
    found = hashlib.sha256(body).hexdigest()
    if found != request.sha256:
        raise ValueError(f"the body has the SHA-256 {found}, Meterpost-Content-SHA256 says {request.sha256[:80]}")


def read_body(request: Request, headers: Mapping[str, str], body: bytes) -> ReceivedBody:
    """Return what the body holds. Raises ValueError where it breaks the contract or is not what the headers say."""
    if request.part is None:
        manifest = read_manifest(request.name, body, request.file_name)
        row_count, resolution = manifest.content.rows, manifest.content.resolution_minutes
        content = None
    else:
        content, manifest = read_part(request.name, body), None
        row_count, resolution = content.row_count, content.resolution_minutes
        if sentence := outside_window(request.name, content):
            raise ValueError(sentence)
    # A catalog has no windows, and so neither a resolution nor the header.
    said = None if resolution is None else _Headers(headers)("meterpost-resolution-minutes")
    if (request.row_count, said) != (row_count, None if resolution is None else str(resolution)):
        raise ValueError(
            f"the body has {row_count:,} rows of {resolution} minutes, the headers say {request.row_count:,} of {said}"
        )
    return ReceivedBody(content, manifest)


def check_signature(headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], received_at: datetime) -> None:
    """Raise ValueError where no key's signature is there, or the time of signing is far from `received_at`."""
    said = _Headers(headers)
    given = said(SIGNATURE_HEADER).split()
    timestamp = said("webhook-timestamp")
    if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > 12:
        raise ValueError("the header webhook-timestamp is no number of seconds")
    for key in keys:
        expected = signature([key], said("webhook-id"), int(timestamp), body)
        if any(hmac.compare_digest(expected.encode(), one.encode()) for one in given):
            break
    else:
        raise ValueError("no signature in webhook-signature is that of the secret: another secret, or other bytes")
    signed_at = from_epoch_milliseconds(int(timestamp) * 1_000)
    if abs(received_at - signed_at) > TIMESTAMP_TOLERANCE:
        raise ValueError(f"it was signed at {iso_seconds(signed_at)} and came at {iso_seconds(received_at)}: a replay?")


class _Headers:
    """Reads headers, whatever the case of their names; what is missing is a ValueError."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.lower(): value for name, value in headers.items()}

    def __call__(self, name: str) -> str:
        value = self._headers.get(name)
        if not value:
            raise ValueError(f"the header {name} is missing")
        return value
