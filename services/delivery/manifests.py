"""The manifest of a run, made when the run is frozen."""

import hashlib
from collections.abc import Sequence

from services.core.manifest import Completeness, ManifestPart, PreviousManifest, render_manifest
from services.core.manifest import Manifest as Content
from services.core.parts import file_stem, part_id, run_id
from services.core.times import iso_seconds
from services.delivery.model import FrozenPart, Manifest, Run, Version
from services.delivery.run_store import LastManifest


def make_manifest(
    installation_id: str,
    run: Run,
    version: Version,
    parts: Sequence[FrozenPart],
    ending: str,
    completeness: Completeness | None,
    last: LastManifest | None,
) -> Manifest:
    """Return the manifest of a run with these parts, whose files end with `ending`; `last` is the one before it."""
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
    number = 1 if last is None else last.number + 1
    content = Content(
        manifest=1,
        number=number,
        job_id=job_id,
        job_name=version.name,
        run=run_id(job_id, slot.start),
        data=version.data,
        resolution_minutes=version.resolution_minutes or None,
        window_start=iso_seconds(slot.start),
        window_end=iso_seconds(slot.end),
        rows=sum(part.rows for part in listed),
        bytes=sum(part.bytes for part in listed),
        parts=listed,
        completeness=completeness,
        previous=None if last is None else PreviousManifest(run_id(job_id, last.slot_start), last.sha256.hex()),
    )
    body = render_manifest(content)
    return Manifest(number, body, hashlib.sha256(body).digest())
