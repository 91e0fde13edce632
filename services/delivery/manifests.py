"""The manifest of a run, or the manifests of a very long one, made when the run is frozen."""

import hashlib
from collections.abc import Sequence

import msgspec

from services.core.manifest import (
    MAX_LISTED_PARTS,
    Completeness,
    ManifestPart,
    PreviousManifest,
    Section,
    render_manifest,
)
from services.core.manifest import Manifest as Content
from services.core.parts import file_stem, part_id, run_id
from services.core.times import iso_seconds
from services.delivery.model import FrozenPart, Manifest, Run, Version
from services.delivery.run_store import LastManifest


class Summary(msgspec.Struct):
    """What of a manifest is said outside of it, too."""

    rows: int
    section: Section = Section(1, 1)


def summary(body: bytes) -> Summary:
    """Return the summary of a manifest of ours."""
    return msgspec.json.decode(body, type=Summary)


def make_manifests(
    installation_id: str,
    run: Run,
    version: Version,
    parts: Sequence[FrozenPart],
    ending: str,
    completeness: Completeness | None,
    last: LastManifest | None,
) -> list[Manifest]:
    """Return the manifests of a run with these parts, whose files end with `ending`; `last` is the one before them."""
    job_id, slot = run.job.job_id, run.slot
    listed = [
        ManifestPart(
            number,
            part_id(installation_id, job_id, slot.start, number),
            file_stem(job_id, version.name, version.data, *slot, number, len(parts)) + ending,
            part.rows.row_count,
            part.byte_count,
            part.sha256.hex(),
        )
        for number, part in enumerate(parts, start=1)
    ]
    sections = -(-len(listed) // MAX_LISTED_PARTS)
    made: list[Manifest] = []
    for section in range(1, sections + 1):
        here = listed[(section - 1) * MAX_LISTED_PARTS : section * MAX_LISTED_PARTS]
        content = Content(
            manifest=1,
            number=1 if last is None else last.number + 1,
            job_id=job_id,
            job_name=version.name,
            run=run_id(job_id, slot.start),
            data=version.data,
            resolution_minutes=version.resolution_minutes or None,
            window_start=iso_seconds(slot.start),
            window_end=iso_seconds(slot.end),
            rows=sum(part.rows for part in here),
            bytes=sum(part.bytes for part in here),
            parts=here,
            completeness=completeness,
            previous=None if last is None else PreviousManifest(run_id(job_id, last.slot_start), last.sha256.hex()),
            section=msgspec.UNSET if sections == 1 else Section(section, sections),
        )
        body = render_manifest(content)
        made.append(Manifest(content.number, body, hashlib.sha256(body).digest()))
        last = LastManifest(slot.start, content.number, made[-1].sha256)
    return made
