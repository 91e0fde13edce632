"""Whether the runs of a job that were received are whole: every part once, rows in order, manifests, no gap.

Pure, and in the order of the slots: of the runs before only what the next one needs is kept.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from services.core.findings import Finding
from services.core.manifest import ManifestPart
from services.core.part_names import PartName
from services.core.received_content import Content, out_of_order, outside_window
from services.core.received_manifest import Chain, ReceivedManifest
from services.core.times import iso_seconds


class ReceivedPart(NamedTuple):
    """A part as it lies there. `content` None: it is not of the form, which was told already."""

    name: PartName
    file: str
    where: str
    size: int
    sha256: str
    content: Content | None


class JobTotals(NamedTuple):
    """How much of a job was looked at."""

    job_id: int
    slug: str
    runs: int
    parts: int
    rows: int
    byte_count: int
    manifests: int
    window_start: datetime | None
    window_end: datetime | None


class _Run(NamedTuple):
    name: PartName
    has_manifest: bool


class JobCheck:
    """Takes the runs of one job, oldest slot first."""

    def __init__(self, job_id: int) -> None:
        self._chain = Chain(job_id)
        self._before: _Run | None = None
        self.totals = JobTotals(job_id, "", 0, 0, 0, 0, 0, None, None)

    def run(
        self, parts: Sequence[ReceivedPart], manifests: Sequence[ReceivedManifest], name: PartName, *, is_arriving: bool
    ) -> Iterator[Finding]:
        """Take a run; `parts` and `manifests` by their numbers, `name` is that of any of its files.

        `is_arriving`: so young that what is missing may be on its way.
        """
        yield from self._follows(_Run(name, bool(manifests)))
        yield from _names(parts, name)
        yield from _sections(manifests, name, is_arriving=is_arriving)
        if not manifests:
            yield from _missing(parts, name, is_arriving=is_arriving)
        yield from _rows(parts)
        for manifest in manifests:
            self._chain.add(manifest)
        if manifests:
            yield from _listed(parts, manifests)
        totals = self.totals
        self.totals = JobTotals(
            totals.job_id,
            name.slug,
            totals.runs + 1,
            totals.parts + len(parts),
            totals.rows + sum(part.content.row_count for part in parts if part.content),
            totals.byte_count + sum(part.size for part in parts),
            totals.manifests + len(manifests),
            totals.window_start or name.start,
            name.end,
        )

    def finish(self) -> Iterator[Finding]:
        """Say what only all manifests together tell."""
        yield from self._chain.findings()

    def _follows(self, run: _Run) -> Iterator[Finding]:
        before, self._before = self._before, run
        if before is None:
            return
        if before.name.end > run.name.start:
            sentence = f"its window begins before that of {before.name.run} ends, at {iso_seconds(before.name.end)}"
            yield Finding("overlap", run.name.run, sentence)
        elif before.name.end < run.name.start and not (before.has_manifest and run.has_manifest):
            # With manifests their numbers tell: a slot without rows has none.
            span = f"{iso_seconds(before.name.end)} to {iso_seconds(run.name.start)}"
            sentence = f"nothing came for {span}: rightly so where there were no rows; only manifests can prove it"
            yield Finding("gap", run.name.run, sentence, is_difference=False)


def _names(parts: Sequence[ReceivedPart], name: PartName) -> Iterator[Finding]:
    counts = sorted({part.name.parts for part in parts})
    if len(counts) > 1:
        yield Finding("part_count", name.run, f"its files speak of {' and of '.join(map(str, counts))} parts")
    if len({part.name._replace(part=None, parts=0) for part in parts}) > 1:
        yield Finding("name", name.run, "the names of its files differ in more than the number of the part")
    for before, part in pairwise(parts):
        if before.name.part == part.name.part:
            yield _twice(part, parts)


def _missing(parts: Sequence[ReceivedPart], name: PartName, *, is_arriving: bool) -> Iterator[Finding]:
    part_count = max((part.name.parts for part in parts), default=0)
    gaps, expected = [], 1
    for part in parts:
        number = part.name.part or 0
        if number > expected:
            gaps.append(_span(expected, number - 1))
        expected = number + 1
    if expected <= part_count:
        gaps.append(_span(expected, part_count))
    if gaps:
        sentence = f"of {part_count} parts, these are missing: {', '.join(gaps)}"
        arriving = "; the run is still arriving" if is_arriving else ""
        yield Finding("part_missing", name.run, sentence + arriving, is_difference=not is_arriving)


def _twice(part: ReceivedPart, parts: Sequence[ReceivedPart]) -> Finding:
    other = next(one for one in parts if one.name.part == part.name.part)
    if other.sha256 == part.sha256:
        return Finding("part_twice", part.where, f"the same part lies in {other.where} as well")
    return Finding("other_bytes", part.where, f"the same part lies in {other.where} with other bytes")


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _rows(parts: Sequence[ReceivedPart]) -> Iterator[Finding]:
    before: Content | None = None
    number = 0
    for part in parts:
        content = part.content
        if content is None or part.name.part == number:
            continue
        number = part.name.part or 0
        if sentence := outside_window(part.name, content):
            yield Finding("window", part.where, sentence)
        if before is not None:
            if before.resolution_minutes != content.resolution_minutes:
                said = (
                    f"its rows are of {content.resolution_minutes} minutes, those before of {before.resolution_minutes}"
                )
                yield Finding("resolution", part.where, said)
            if sentence := out_of_order(before, content):
                yield Finding("row_order", part.where, sentence)
        before = content


def _sections(manifests: Sequence[ReceivedManifest], name: PartName, *, is_arriving: bool) -> Iterator[Finding]:
    count = max((manifest.sections for manifest in manifests), default=0)
    missing = sorted(set(range(1, count + 1)) - {manifest.section for manifest in manifests})
    if missing:
        sentence = f"of its {count} manifests, these are missing: {', '.join(map(str, missing))}"
        arriving = "; the run is still arriving" if is_arriving else ""
        yield Finding("chain", name.run, sentence + arriving, is_difference=not is_arriving)


def _listed(parts: Sequence[ReceivedPart], manifests: Sequence[ReceivedManifest]) -> Iterator[Finding]:
    found = {part.file: part for part in parts}
    for manifest in manifests:
        for listed in manifest.content.parts:
            part = found.pop(listed.file, None)
            if part is None:
                # However young: a manifest is sent after the parts.
                yield Finding("part_missing", manifest.where, f"it lists {listed.file}, which is not here")
            else:
                yield from _as_listed(part, listed, manifest.content.resolution_minutes)
    last = manifests[-1]
    if len(manifests) == last.sections:
        for file in found:
            yield Finding("manifest", last.where, f"it does not list {file}, which is here")


def _as_listed(part: ReceivedPart, listed: ManifestPart, resolution_minutes: int | None) -> Iterator[Finding]:
    if part.size != listed.bytes or part.sha256 != listed.sha256:
        sentence = (
            f"it has {part.size:,} bytes with SHA-256 {part.sha256}; "
            f"the manifest says {listed.bytes:,} with {listed.sha256}"
        )
        yield Finding("hash", part.where, sentence)
    if part.content is not None:
        if part.content.row_count != listed.rows:
            sentence = f"it has {part.content.row_count:,} rows, the manifest says {listed.rows:,}"
            yield Finding("rows", part.where, sentence)
        if part.content.resolution_minutes != resolution_minutes:
            sentence = (
                f"its rows are of {part.content.resolution_minutes} minutes, the manifest says {resolution_minutes}"
            )
            yield Finding("resolution", part.where, sentence)
