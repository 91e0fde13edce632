"""Runs that are whole have nothing to be said of; each thing that can be wrong with them is found, and only that."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.core import received_manifest
from services.core.findings import Finding
from services.core.manifest import (
    MAX_LISTED_PARTS,
    Completeness,
    Manifest,
    ManifestPart,
    PreviousManifest,
    render_manifest,
)
from services.core.part_content import PartContent, RowKey
from services.core.part_names import PartName, read_part_name
from services.core.parts import MAX_HTTPS_BYTES, file_stem, manifest_file_name
from services.core.received_manifest import ReceivedManifest, read_manifest
from services.core.received_runs import JobCheck, ReceivedPart
from services.core.schedule import Slot
from services.core.times import iso_seconds
from services.delivery import manifests
from services.delivery.model import FrozenPart, JobKey, RowRange, Run, Version

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)


def named(run: int, part: int, parts: int = 3) -> str:
    slot = START + run * HOUR, START + (run + 1) * HOUR
    return file_stem(3, "Hourly", "meters_measurements", *slot, part, parts) + ".csv"


def part_of(run: int, part: int, parts: int = 3, *, file: str = "", content: bytes = b"") -> ReceivedPart:
    name = read_part_name(file or named(run, part, parts))
    at = iso_seconds(name.start)
    rows = PartContent(10, RowKey(at, part * 10), RowKey(at, part * 10 + 9), 15)
    body = content or f"{run}/{part}".encode()
    return ReceivedPart(
        name, named(run, part, parts), f"in/{file or named(run, part, parts)}", len(body), sha(body), rows
    )


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def whole(run: int) -> list[ReceivedPart]:
    return [part_of(run, number) for number in (1, 2, 3)]


def content_of(run: int, parts: list[ReceivedPart], number: int, previous: ReceivedManifest | None) -> Manifest:
    name = parts[0].name
    listed = [
        ManifestPart(place, f"a1b2-{name.run}-part{place}", part.file, 10, part.size, part.sha256)
        for place, part in enumerate(parts, start=1)
    ]
    before = None if previous is None else PreviousManifest(previous.content.run, previous.sha256)
    return Manifest(
        1, number, 3, "Hourly", name.run, "meters_measurements", 15, iso_seconds(name.start), iso_seconds(name.end),
        10 * len(parts), sum(part.bytes for part in listed), listed, Completeness(5, 6), before,
    )  # fmt: skip


def manifest_name(run: int, section: int = 1, sections: int = 1) -> PartName:
    slot = START + run * HOUR, START + (run + 1) * HOUR
    return read_part_name(manifest_file_name(3, "Hourly", "meters_measurements", *slot, section, sections))


def manifest_of(
    run: int, number: int, previous: ReceivedManifest | None, parts: list[ReceivedPart] | None = None
) -> ReceivedManifest:
    body = render_manifest(content_of(run, parts or whole(run), number, previous))
    return read_manifest(manifest_name(run), body, f"manifest {number}")


def found(
    *runs: tuple[list[ReceivedPart], ReceivedManifest | list[ReceivedManifest] | None], is_arriving: bool = False
) -> list[Finding]:
    check = JobCheck(3)
    findings: list[Finding] = []
    for parts, given in runs:
        name = parts[0].name if parts else manifest_name(0)
        manifests = given if isinstance(given, list) else [given] if given else []
        findings += check.run(parts, manifests, name, is_arriving=is_arriving)
    return findings + list(check.finish())


def told(findings: list[Finding]) -> list[tuple[str, bool]]:
    return [(finding.what, finding.is_difference) for finding in findings]


def test_whole_runs_with_a_chain_are_sound_whatever_the_order_of_their_manifests() -> None:
    first = manifest_of(5, 1, None)
    second = manifest_of(0, 2, first)
    third = manifest_of(7, 3, second)
    check = JobCheck(3)
    findings: list[Finding] = []
    for run, manifest in ((0, second), (5, first), (7, third)):  # 0 was sent after 5, as by a backfill
        findings += check.run(whole(run), [manifest], whole(run)[0].name, is_arriving=False)
    assert findings + list(check.finish()) == []
    assert check.totals[2:7] == (3, 9, 90, 27, 3)
    assert (check.totals.window_start, check.totals.window_end) == (START, START + 8 * HOUR)


def test_a_gap_is_worth_knowing_and_only_manifests_can_vouch_for_it() -> None:
    [finding] = found((whole(0), None), (whole(2), None))
    assert (finding.what, finding.where, finding.is_difference) == ("gap", "job3-20261120T120000Z", False)
    assert "2026-11-20T11:00:00Z to 2026-11-20T12:00:00Z" in finding.sentence
    first = manifest_of(0, 1, None)
    assert found((whole(0), first), (whole(2), manifest_of(2, 2, first))) == []


@pytest.mark.parametrize(
    ("parts", "what", "words"),
    [
        ([part_of(0, 1), part_of(0, 3)], "part_missing", "of 3 parts, these are missing: 2"),
        ([part_of(0, 2, 9), part_of(0, 6, 9)], "part_missing", "of 9 parts, these are missing: 1, 3 to 5, 7 to 9"),
        ([part_of(0, 1), part_of(0, 2)], "part_missing", "these are missing: 3"),
        ([*whole(0)[:1], *whole(0)], "part_twice", "lies in in/"),
        ([part_of(0, 1, content=b"other"), *whole(0)], "other_bytes", "with other bytes"),
        ([part_of(0, 1), part_of(0, 2), part_of(0, 3, 4), part_of(0, 4, 4)], "part_count", "of 3 and of 4 parts"),
        (
            [*whole(0)[:2], part_of(0, 3, file=named(0, 3).replace("Hourly", "Daily"))],
            "name",
            "differ in more than the number",
        ),
    ],
)
def test_parts_that_are_missing_or_too_many(parts: list[ReceivedPart], what: str, words: str) -> None:
    [finding] = found((parts, None))
    assert (finding.what, finding.is_difference) == (what, True)
    assert words in finding.sentence


def test_what_is_missing_of_a_run_that_is_arriving_may_yet_come() -> None:
    parts = [part_of(0, 1)]
    assert told(found((parts, None), is_arriving=True)) == [("part_missing", False)]
    # A manifest comes after the parts.
    assert told(found((parts, manifest_of(0, 1, None)), is_arriving=True)) == [("part_missing", True)] * 2


def test_the_rows_of_parts_follow_one_another_in_their_window() -> None:
    first, second, third = whole(0)
    assert isinstance(first.content, PartContent)
    assert isinstance(third.content, PartContent)
    early = first.content._replace(first=RowKey("2026-11-20T09:45:00Z", 1))
    late = first.content._replace(last=RowKey("2026-11-20T11:00:00Z", 1))
    for content in (early, late):
        assert told(found(([first._replace(content=content)], None))) == [("part_missing", True), ("window", True)]
    again = second._replace(content=first.content)
    assert told(found(([first, again, third], None))) == [("row_order", True)]
    hourly = third._replace(content=third.content._replace(resolution_minutes=60))
    assert told(found(([first, second, hourly], None))) == [("resolution", True)]


def test_runs_that_overlap() -> None:
    longer = [
        part_of(0, number, file=named(0, number).replace("20261120T110000Z", "20261120T120000Z"))
        for number in (1, 2, 3)
    ]
    assert told(found((longer, None), (whole(1), None))) == [("overlap", True)]


def test_parts_are_as_the_manifest_lists_them() -> None:
    manifest = manifest_of(0, 1, None)
    first, second, third = whole(0)
    assert told(found(([first, third], manifest))) == [("part_missing", True)]
    assert told(found(([], manifest))) == [("part_missing", True)] * 3
    assert told(found(([first._replace(sha256=sha(b"")), second, third], manifest))) == [("hash", True)]
    assert told(found(([first._replace(size=1), second, third], manifest))) == [("hash", True)]
    fewer = first._replace(content=first.content._replace(row_count=9) if first.content else None)
    assert told(found(([fewer, second, third], manifest))) == [("rows", True)]
    shorter = manifest_of(0, 1, None, parts=[part_of(0, 1, 2), part_of(0, 2, 2)])
    assert {finding.what for finding in found((whole(0), shorter))} == {"part_missing", "manifest"}


def test_the_chain_of_manifests() -> None:
    first = manifest_of(0, 1, None)
    second = manifest_of(1, 2, first)
    third = manifest_of(2, 3, second)
    assert told(found((whole(0), first), (whole(2), third))) == [("chain", True)]
    [missing] = found((whole(0), first), (whole(2), third))
    assert (
        "manifest 2 of the job is missing before it, the last of them that of job3-20261120T110000Z" in missing.sentence
    )
    [beginning] = found((whole(1), second), (whole(2), third))
    assert (beginning.what, beginning.is_difference) == ("chain", False)
    other = second._replace(sha256=sha(b"other"))
    assert told(found((whole(0), first), (whole(1), other), (whole(2), third))) == [("chain", True)]
    assert told(found((whole(0), first), (whole(1), manifest_of(1, 1, None)))) == [("chain", True)]
    assert told(found((whole(0), manifest_of(0, 1, second)))) == [("chain", True)]
    assert told(found((whole(0), first), (whole(1), manifest_of(1, 2, None)))) == [("chain", True)]


def long_run(monkeypatch: pytest.MonkeyPatch) -> tuple[list[ReceivedPart], list[ReceivedManifest]]:
    """Return a run of five parts with manifests that list two of them at most."""
    for module in (manifests, received_manifest):
        monkeypatch.setattr(module, "MAX_LISTED_PARTS", 2)
    parts = [part_of(0, number, 5) for number in range(1, 6)]
    frozen = [FrozenPart(RowRange(START, 1, 10), part.size, bytes.fromhex(part.sha256)) for part in parts]
    run = Run(JobKey(1, 3), Slot(START, START + HOUR), 1, 1, False, 0, START)
    version = Version(1, START, "Hourly", "meters_measurements", 60, 15, None, "sftp", {})
    made = manifests.make_manifests("a1b2", run, version, frozen, ".csv", None, None)
    assert [manifest.number for manifest in made] == [1, 2, 3]
    assert [manifests.summary(manifest.body).rows for manifest in made] == [20, 20, 10]
    read = [read_manifest(manifest_name(0, place, 3), one.body, f"{place}") for place, one in enumerate(made, start=1)]
    return parts, read


def test_a_long_run_has_several_manifests_in_one_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, listed = long_run(monkeypatch)
    assert found((parts, listed)) == []
    assert found((parts, listed), (whole(1), manifest_of(1, 4, listed[-1]))) == []
    assert told(found((parts[:4], listed))) == [("part_missing", True)]
    # The last is missing: nothing after it could tell.
    assert told(found((parts, listed[:2]))) == [("chain", True)]
    assert told(found((parts, listed[:2]), is_arriving=True)) == [("chain", False)]
    assert told(found((parts, [listed[0], listed[2]]))) == [("chain", True)] * 2
    other = listed[1]._replace(sha256=sha(b"other"))
    assert told(found((parts, [listed[0], other, listed[2]]))) == [("chain", True)]
    sixth = part_of(0, 5, 5, file=named(0, 6, 6))
    assert "manifest" in {finding.what for finding in found(([*parts, sixth._replace(file="six")], listed))}
    body = render_manifest(listed[1].content)
    for name, sentence in (
        (manifest_name(0, 1, 3), "says that it is manifest 2 of 3, not 1 of 3"),
        (manifest_name(0), "not 1 of 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_manifest(name, body, "here")
    shorter = msgspec.structs.replace(
        listed[1].content, parts=listed[1].content.parts[:1], rows=10, bytes=listed[1].content.parts[0].bytes
    )
    with pytest.raises(ValueError, match="though it is not the last"):
        read_manifest(manifest_name(0, 2, 3), render_manifest(shorter), "here")
    with pytest.raises(ValueError, match="not numbered from 3 on"):
        read_manifest(manifest_name(0, 2, 3), body.replace(b'"part": 3', b'"part": 4'), "here")


def test_a_manifest_with_the_longest_names_is_smaller_than_a_request_may_be() -> None:
    run = Run(JobKey(1, 2**31 - 1), Slot(START, START + HOUR), 1, 1, False, 0, START)
    version = Version(1, START, "W" * 200, "meters_measurements", 60, 15, None, "https", {})
    frozen = [FrozenPart(RowRange(START, 1, 2_000), 999_999, bytes(32))] * (MAX_LISTED_PARTS + 10)
    made = manifests.make_manifests("f" * 36, run, version, frozen, ".json", Completeness(10**12, 10**12), None)
    assert len(made) == 2
    assert len(made[0].body) < MAX_HTTPS_BYTES


BODY = render_manifest(content_of(0, whole(0), 1, None))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda body: body[:-3], "not the JSON of a manifest"),
        (lambda body: body.replace(b"  ", b" "), "something rewrote it"),
        (lambda body: body.replace(b'"manifest": 1', b'"manifest": 2'), "form 2"),
        (lambda body: body.replace(b'"Hourly"', b'"Daily"'), "than its name"),
        (lambda body: body.replace(b'"window_end": "2026-11-20T11', b'"window_end": "2026-11-20T12'), "than its name"),
        (lambda body: body.replace(b'"rows": 30', b'"rows": 31'), "not the sum"),
        (lambda body: body.replace(b'"part": 2', b'"part": 3'), "not numbered from 1"),
        (lambda body: body.replace(b"_2of3", b"_1of3"), "it lists the file"),
        (lambda body: body.replace(b"Z-part2", b"Z-part1"), "gives part 2 the id"),
    ],
)
def test_a_manifest_that_is_not_sound_in_itself(change: Callable[[bytes], bytes], sentence: str) -> None:
    assert read_manifest(manifest_name(0), BODY, "here").content.number == 1
    assert change(BODY) != BODY
    with pytest.raises(ValueError, match=sentence):
        read_manifest(manifest_name(0), change(BODY), "here")
