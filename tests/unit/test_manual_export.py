"""How exports are cut, named and signed: decisions without any server."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.manual_export import (
    CHUNK_PROBES,
    CHUNK_READINGS,
    CHUNK_ROWS,
    LONGEST_CHUNK,
    ExportFormat,
    WantedExport,
    file_name,
    plan_chunks,
    problems_of,
    progress_share,
)
from services.platform.signed_links import LinkError, LinkExpiredError, LinkSigner

T0 = datetime(2026, 11, 20, 10, tzinfo=UTC)


@given(
    resolution=st.sampled_from([1, 5, 15, 60]),
    cadence=st.sampled_from([1, 5, 15, 60]),
    meters=st.integers(0, 2_000_000),
    others=st.integers(0, 2_000_000),
)
def test_a_chunk_is_whole_windows_and_bounded_work(resolution: int, cadence: int, meters: int, others: int) -> None:
    plan = plan_chunks(resolution, cadence, meters, meters + others)
    windows, rest = divmod(plan.chunk_minutes, resolution)
    assert rest == 0
    assert windows >= 1
    assert timedelta(minutes=plan.chunk_minutes) <= LONGEST_CHUNK
    if windows > 1:
        read = meters if plan.is_selective else meters + others
        assert windows * meters <= CHUNK_ROWS
        assert windows * read * max(1, resolution // cadence) <= CHUNK_READINGS
        if plan.is_selective:
            assert plan.chunk_minutes * meters <= CHUNK_PROBES


def test_few_of_many_meters_are_read_one_by_one() -> None:
    assert plan_chunks(5, 1, 10, 50_000).is_selective
    assert not plan_chunks(5, 1, 10_000, 50_000).is_selective


def test_a_year_is_granted_and_every_problem_is_told_at_once() -> None:
    year = WantedExport(T0, T0 + timedelta(days=366), 5, site_ids=range(1, 251))
    assert problems_of(year) == []
    wrong = WantedExport(T0, T0 - timedelta(seconds=1), 5, site_ids=[], meter_ids=[7, 7])
    assert [(one.field, one.code) for one in problems_of(wrong)] == [
        ("to", "not_on_grid"),
        ("to", "empty_range"),
        ("sites", "nothing_chosen"),
        ("meters", "chosen_twice"),
    ]


@pytest.mark.parametrize("export_format", ExportFormat)
def test_a_file_name_is_fit_for_every_system(export_format: ExportFormat) -> None:
    wanted = WantedExport(T0, T0 + timedelta(days=1), 5, export_format, known_at=T0)
    name = file_name(wanted, 12)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
    assert name.endswith(f"_export12.{export_format.value}")


def test_progress_is_a_share() -> None:
    end = T0 + timedelta(hours=4)
    assert [progress_share(T0, end, T0 + timedelta(hours=hours)) for hours in (-1, 0, 1, 4, 9)] == [0, 0, 0.25, 1, 1]


def test_a_token_is_of_one_purpose_and_one_thing() -> None:
    keys = {"k": b"k" * 32}
    signer = LinkSigner(keys, "one")
    token = signer.sign((1, 23), T0)
    just_before = T0 - timedelta(seconds=1)
    signer.check(token, (1, 23), just_before)
    for other, thing in ((LinkSigner(keys, "two"), (1, 23)), (signer, (12, 3)), (signer, (1, 24))):
        with pytest.raises(LinkError):
            other.check(token, thing, just_before)
    with pytest.raises(LinkExpiredError):
        signer.check(token, (1, 23), T0)


@given(st.text(max_size=80))
def test_no_text_opens_anything(text: str) -> None:
    with pytest.raises(LinkError):
        LinkSigner({"k": b"k" * 32}, "one").check(text, (1, 23), T0)
