"""Cutting runs into parts: nothing is lost, the order is kept, the limits hold."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.core.blocks import Block, Layout
from services.core.parts import (
    HTTPS_JSON,
    CutPart,
    PartFormat,
    cut_parts,
    file_stem,
    part_id,
    run_id,
    slug,
)

SLOT_START = datetime(2026, 11, 20, 10, tzinfo=UTC)


LAYOUT = Layout(lambda names, _minutes: (names.meter_name.encode(), b""), None, b"")


def block_of(part_format: PartFormat, records: list[bytes]) -> Block:
    """Return records as a block: each stands before its time, and nothing else does."""
    block = Block(LAYOUT, part_format.joint)
    nothing = [b""] * len(records)
    block.add(b"", records, nothing, nothing)
    return block


def cut(part_format: PartFormat, records: list[bytes]) -> list[CutPart]:
    return list(cut_parts(part_format, block_of(part_format, records), is_end=True))


def formats() -> st.SearchStrategy[PartFormat]:
    around = st.binary(max_size=6)
    return st.builds(
        PartFormat,
        around,
        around,
        around,
        st.just(".x"),
        st.integers(1, 9),
        st.none() | st.integers(1, 80),
        st.just(LAYOUT),
    )


@given(part_format=formats(), records=st.lists(st.binary(min_size=1, max_size=30), max_size=40))
def test_nothing_is_lost_and_limits_hold(part_format: PartFormat, records: list[bytes]) -> None:
    """The parts follow one another, and each is what its rows make assembled."""
    place = 0
    for part in cut(part_format, records):
        assert part.first == place
        assert part.row_count >= 1
        assert part.body == part_format.assemble(records[place : place + part.row_count])
        assert part.row_count <= part_format.max_rows
        assert part_format.max_bytes is None or len(part.body) <= part_format.max_bytes or part.row_count == 1
        place += part.row_count
    assert place == len(records)


@given(
    part_format=formats(),
    records=st.lists(st.binary(min_size=1, max_size=30), max_size=40),
    wanted=st.integers(1, 12),
)
def test_parts_are_the_same_however_a_run_is_read(part_format: PartFormat, records: list[bytes], wanted: int) -> None:
    """Read in blocks of at least a part's rows, each from the first row on that is in no part yet."""
    wanted = max(wanted, part_format.max_rows)
    bodies, place = [], 0
    while True:
        read = records[place : place + wanted]
        is_end = len(read) < wanted
        for part in cut_parts(part_format, block_of(part_format, read), is_end=is_end):
            bodies.append(part.body)
            place += part.row_count
        if is_end:
            break
    assert bodies == [part.body for part in cut(part_format, records)]


@given(part_format=formats(), records=st.lists(st.binary(min_size=1, max_size=30), max_size=40))
def test_parts_are_as_full_as_they_can_be(part_format: PartFormat, records: list[bytes]) -> None:
    parts = cut(part_format, records)
    for part in parts[:-1]:
        one_more = part_format.assemble(records[part.first : part.first + part.row_count + 1])
        is_full = part.row_count == part_format.max_rows
        assert is_full or (part_format.max_bytes is not None and len(one_more) > part_format.max_bytes)


def test_https_parts_have_at_most_2000_measurements_and_one_megabyte() -> None:
    assert [part.row_count for part in cut(HTTPS_JSON, [b"{}"] * 4_001)] == [2_000, 2_000, 1]
    parts = cut(HTTPS_JSON, [b"x" * 999] * 1_500)
    assert [part.row_count for part in parts] == [999, 501]
    # 17 bytes before the first row, 2 after the last, 998 commas
    assert len(parts[0].body) == 17 + 999 * 999 + 998 + 2 <= 1_000_000


def test_a_row_larger_than_a_part_is_not_lost() -> None:
    assert [part.row_count for part in cut(HTTPS_JSON, [b"{}", b"y" * 1_000_001, b"{}"])] == [1, 1, 1]


def test_a_run_without_rows_has_no_parts() -> None:
    assert cut(HTTPS_JSON, []) == []


def test_names_depend_on_nothing_but_the_job_and_the_slot_and_ids_on_the_installation() -> None:
    assert run_id(7, SLOT_START) == "job7-20261120T100000Z"
    assert part_id("a1b2c3d4", 7, SLOT_START, 2) == "a1b2c3d4-job7-20261120T100000Z-part2"
    stem = file_stem(7, "Hourly: all sites!", "meters_measurements", SLOT_START, SLOT_START + timedelta(hours=1), 2, 3)
    assert stem == "7-Hourly-all-sites_meters_measurements_20261120T100000Z_20261120T110000Z_2of3"


@given(name=st.text(max_size=200))
def test_any_job_name_makes_a_safe_file_name(name: str) -> None:
    made = slug(name)
    assert 1 <= len(made) <= 60
    assert made.isascii()
    assert made.replace("-", "").isalnum()
