"""What a receiver reads from a name is what the sender put into it; nothing else is taken for one."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.part_names import PartName, is_temporary, read_part_name
from services.core.parts import file_stem, manifest_file_name, slug
from services.delivery.transports.file_answers import partial_name

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
END = START + timedelta(hours=1)


@given(
    job_id=st.integers(1, 2**31),
    job_name=st.text(max_size=130),
    start=st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1)),  # noqa: DTZ001 - made aware below
    minutes=st.sampled_from([5, 15, 60, 1440]),
    part=st.integers(1, 2_000),
    more=st.integers(0, 2_000),
    ending=st.sampled_from([".csv", ".json"]),
)
def test_every_name_that_is_sent_is_read_back(
    job_id: int, job_name: str, start: datetime, minutes: int, part: int, more: int, ending: str
) -> None:
    begin = start.replace(microsecond=0, tzinfo=UTC)
    run = (job_id, job_name, "meters_measurements", begin, begin + timedelta(minutes=minutes))
    name = read_part_name(file_stem(*run, part, part + more) + ending)
    assert name == PartName(job_id, slug(job_name), *run[2:], part, part + more, ending)
    of_run = name._replace(part=None, parts=0, ending="")
    assert read_part_name(manifest_file_name(*run, 1, 1)) == of_run
    sections = part + more + 1
    assert read_part_name(manifest_file_name(*run, part, sections)) == of_run._replace(section=part, sections=sections)


@pytest.mark.parametrize(
    "name",
    [
        "readme.txt",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_1of2.csv.gz",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_1of2 (1).csv",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_01of2.csv",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_3of2.csv",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_0of2.csv",
        "3-Hourly_meters_measurements_20261120T110000Z_20261120T100000Z_1of2.csv",
        "3-Hourly_meters_measurements_20261320T100000Z_20261120T110000Z_1of2.csv",
        "3-Hourly_meters_measurements_20261120T100060Z_20261120T110000Z_1of2.csv",
        "3-_meters_measurements_20261120T100000Z_20261120T110000Z_1of2.csv",
        "3-Hour ly_meters_measurements_20261120T100000Z_20261120T110000Z_1of2.csv",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_manifest3of2.json",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_manifest1of1.json",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_manifest02of3.json",
        "3-Hourly_other_20261120T100000Z_20261120T110000Z_1of2.csv",
        "3-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_1of2.csv\n",
        "٣-Hourly_meters_measurements_20261120T100000Z_20261120T110000Z_1of2.csv",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name"):
        read_part_name(name)


def test_names_under_way_are_known() -> None:
    name = file_stem(3, "Hourly", "meters_measurements", START, END, 1, 2) + ".csv"
    assert is_temporary(partial_name(name))
    assert is_temporary(f".{name}.partial")
    assert not is_temporary(name)
