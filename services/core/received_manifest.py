"""A manifest that was received: whether it is sound in itself, and whether the job's manifests make a whole chain."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from services.core.findings import Finding
from services.core.manifest import MAX_LISTED_PARTS, Manifest, PreviousManifest, Section, render_manifest
from services.core.part_names import PartName, read_part_name
from services.core.parts import slug
from services.core.times import iso_seconds


class ReceivedManifest(NamedTuple):
    """A manifest with the hash of its bytes, and where it lies."""

    content: Manifest
    sha256: str
    where: str
    section: int = 1
    """Which of the run's manifests it is, of `sections`."""
    sections: int = 1


def read_manifest(name: PartName, body: bytes, where: str) -> ReceivedManifest:
    """Return the manifest that came under a name. Raises ValueError, with a sentence, for what is wrong."""
    try:
        content = msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not the JSON of a manifest: {error}") from None
    if content.manifest != 1:
        raise ValueError(f"it is a manifest of form {content.manifest}, which this version does not know")
    if render_manifest(content) != body:
        raise ValueError("it is a manifest, but not in the bytes that are sent: something rewrote it")
    said = (content.job_id, slug(content.job_name), content.data, content.run, content.window_start, content.window_end)
    if said != (name.job_id, name.slug, name.data, name.run, iso_seconds(name.start), iso_seconds(name.end)):
        raise ValueError(f"it speaks of the run {content.run}, job {content.job_id}, or another window than its name")
    section = Section(1, 1) if content.section is msgspec.UNSET else content.section
    if (section.number, section.of) != (name.section, name.sections):
        raise ValueError(
            f"it says that it is manifest {section.number} of {section.of}, not {name.section} of {name.sections}"
        )
    _check_parts(name, content)
    return ReceivedManifest(content, hashlib.sha256(body).hexdigest(), where, name.section, name.sections)


def _check_parts(name: PartName, content: Manifest) -> None:
    parts = content.parts
    before = (name.section - 1) * MAX_LISTED_PARTS
    if [part.part for part in parts] != list(range(before + 1, before + len(parts) + 1)) or not parts:
        raise ValueError(f"its parts are not numbered from {before + 1} on")
    if name.section < name.sections and len(parts) != MAX_LISTED_PARTS:
        raise ValueError(f"it lists {len(parts)} parts, though it is not the last manifest of its run")
    if content.rows != sum(part.rows for part in parts) or content.bytes != sum(part.bytes for part in parts):
        raise ValueError("its rows or bytes are not the sum of its parts'")
    last = read_part_name(parts[-1].file)
    for part in parts:
        listed = read_part_name(part.file)
        of_name = name._replace(section=1, sections=1)
        if listed._replace(part=None, parts=0, ending="") != of_name or listed.part != part.part:
            raise ValueError(f"it lists the file {part.file} as part {part.part}")
        if listed.parts != last.parts or (name.section == name.sections and listed.parts != parts[-1].part):
            raise ValueError(f"it lists the file {part.file} as part {part.part} of {parts[-1].part}")
        if not part.id.endswith(f"-{content.run}-part{part.part}"):
            raise ValueError(f"it gives part {part.part} the id {part.id}")


class _Link(NamedTuple):
    run: str
    sha256: str
    previous: PreviousManifest | None
    where: str


class Chain:
    """The manifests of one job. Keeps of each only what binds it to the next."""

    def __init__(self, job_id: int) -> None:
        self._job_id = job_id
        self._links: dict[int, _Link] = {}
        self._twice: list[Finding] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._links)

    def add(self, manifest: ReceivedManifest) -> None:
        """Take the next one; their order does not matter."""
        content = manifest.content
        known = self._links.get(content.number)
        if known is not None:
            sentence = f"the number {content.number} in the job's chain is also that of {known.where}"
            self._twice.append(Finding("chain", manifest.where, sentence))
            return
        self._links[content.number] = _Link(content.run, manifest.sha256, content.previous, manifest.where)

    def findings(self) -> Iterator[Finding]:
        """Say where the chain is broken."""
        yield from self._twice
        before: int | None = None
        for number in sorted(self._links):
            link = self._links[number]
            if before is None:
                yield from self._beginning(number, link)
            elif number > before + 1:
                missing = f"{before + 1}" if number == before + 2 else f"{before + 1} to {number - 1}"
                last = "" if link.previous is None else f", the last of them that of {link.previous.run}"
                yield Finding("chain", link.where, f"manifest {missing} of the job is missing before it{last}")
            else:
                yield from self._joint(self._links[before], link)
            before = number

    def _beginning(self, number: int, link: _Link) -> Iterator[Finding]:
        if (number == 1) != (link.previous is None):
            yield Finding("chain", link.where, f"manifest {number} of the job is said to follow {link.previous}")
        elif link.previous is not None:
            sentence = f"the chain begins with manifest {number}; the one before it ({link.previous.run}) is not here"
            yield Finding("chain", link.where, sentence, is_difference=False)

    def _joint(self, before: _Link, link: _Link) -> Iterator[Finding]:
        if link.previous != PreviousManifest(before.run, before.sha256):
            said = "none" if link.previous is None else f"{link.previous.run} with SHA-256 {link.previous.sha256}"
            sentence = f"the manifest before it is {before.run} with SHA-256 {before.sha256}, but it names {said}"
            yield Finding("chain", link.where, sentence)
