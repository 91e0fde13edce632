"""NEM12 files: exact values, and every fault by its line."""

import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.core.nem12 import Channel, parse_nem12

REAL_FILE = Path(__file__).parents[1] / "data" / "nem12_198_meters_5min_one_day.zip"
HEADER = "100,NEM12,202001020000,MDP,RETAILER"
CHANNEL = "200,NMI1,E1,,E1,,,kWh,30,"
VALUES = ",".join(["1.5"] * 48)
DAY = f"300,20200101,{VALUES},A,,,,"
END = "900"


def file_of(*lines: str) -> str:
    return "\r\n".join(lines) + "\r\n"


def only_problem(*lines: str) -> tuple[int, str]:
    problems = parse_nem12(file_of(*lines)).problems
    assert len(problems) == 1, problems
    return problems[0].line, problems[0].message


def test_the_real_file_is_read_to_the_last_pulse() -> None:
    with zipfile.ZipFile(REAL_FILE) as archive:
        found = parse_nem12(archive.read(archive.namelist()[0]).decode())
    assert found.problems == ()
    assert len(found.channels) == 198
    pulses = [value for day in found.days for value in day.pulses if value is not None]
    assert len(pulses) == 57_024
    assert sum(pulses) == 214_621_000
    assert {day.starts_at for day in found.days} == {datetime(2019, 12, 31, 14, tzinfo=UTC)}


def test_several_days_and_channels() -> None:
    second = f"300,20200102,{VALUES},E52,,,,"
    found = parse_nem12(
        file_of(HEADER, CHANNEL, DAY, second, "200,NMI1,E1B1,,B1,,,Wh,30,", DAY.replace("1.5", "7"), END)
    )
    assert found.problems == ()
    assert found.channels == (Channel("NMI1", "E1"), Channel("NMI1", "B1"))
    assert [(day.channel.name, day.starts_at, day.pulses[0], len(day.pulses)) for day in found.days] == [
        ("NMI1 E1", datetime(2019, 12, 31, 14, tzinfo=UTC), 1_500, 48),
        ("NMI1 E1", datetime(2020, 1, 1, 14, tzinfo=UTC), 1_500, 48),
        ("NMI1 B1", datetime(2019, 12, 31, 14, tzinfo=UTC), 7, 48),
    ]


@pytest.mark.parametrize(
    ("unit", "value", "pulses"),
    [
        ("kWh", "0.001", 1),
        ("KWH", "12.3450", 12_345),
        ("Wh", "3", 3),
        ("MWh", "0.000001", 1),
        ("kWh", "0", 0),
        ("kWh", "999999999999", 999_999_999_999_000),
    ],
)
def test_units_become_pulses_exactly(unit: str, value: str, pulses: int) -> None:
    text = file_of(HEADER, CHANNEL.replace("kWh", unit), DAY.replace("1.5", value), END)
    assert parse_nem12(text).days[0].pulses == (pulses,) * 48


@pytest.mark.parametrize("minutes", [5, 15, 30])
def test_a_day_has_as_many_values_as_its_intervals(minutes: int) -> None:
    count = 1440 // minutes
    channel = f"200,N,E1,,E1,,,kWh,{minutes},"
    assert parse_nem12(file_of(HEADER, channel, f"300,20200101,{'1,' * count}A", END)).days[0].pulses == (1000,) * count
    for wrong in (count - 1, count + 1):
        line, message = only_problem(HEADER, channel, f"300,20200101,{'1,' * wrong}A", END)
        assert line == 3
        assert message == f"300 record with {wrong} interval values; a day of {minutes} minutes has {count}"


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        ((CHANNEL, DAY, END), 1, "must begin with a 100 record"),
        (("100,NEM13,x", CHANNEL, DAY, END), 1, "'NEM13'"),
        ((HEADER, HEADER, CHANNEL, DAY, END), 2, "second 100"),
        ((HEADER, CHANNEL, DAY), 3, "without its 900 record"),
        ((HEADER, CHANNEL, DAY, END, DAY), 5, "goes on after its 900"),
        ((HEADER, DAY, END), 2, "300 record without a 200 record"),
        ((HEADER, CHANNEL, DAY, "450,x", END), 4, "unknown record '450'"),
        ((HEADER, "200,NMI1", END), 2, "9 at least"),
        ((HEADER, "200,,E1,,E1,,,kWh,30,", END), 2, "without an NMI"),
        ((HEADER, "200,NMI1,E1,,,,,kWh,30,", END), 2, "without an NMI suffix"),
        ((HEADER, CHANNEL.replace("kWh", "kVArh"), END), 2, "the unit 'kVArh'"),
        ((HEADER, CHANNEL.replace("30", "10"), END), 2, "the interval length '10'"),
        ((HEADER, CHANNEL, DAY.replace("20200101", "20200231"), END), 3, "the date '20200231'"),
        ((HEADER, CHANNEL, DAY.replace("20200101", "1.1.2020"), END), 3, "the date '1.1.2020'"),
        ((HEADER, CHANNEL, DAY.replace("1.5", "1.5004", 1), END), 3, "interval 1: the value 1.5004 is no whole number"),
        ((HEADER, CHANNEL, DAY.replace("1.5", "-2", 1), END), 3, "the value -2 is negative"),
        ((HEADER, CHANNEL, DAY.replace("1.5", "1e3", 1), END), 3, "'1e3' is not a number"),
        ((HEADER, CHANNEL, DAY.replace("1.5", "NaN", 1), END), 3, "'NaN' is not a number"),
        ((HEADER, CHANNEL, DAY.replace("1.5", "", 1), END), 3, "the value is empty"),
        ((HEADER, CHANNEL, DAY.replace("1.5", "9999999999999", 1), END), 3, "is larger than"),
        ((HEADER, CHANNEL, f"300,20200101,{VALUES}", END), 3, "without a quality"),
        ((HEADER, CHANNEL, DAY, DAY, END), 4, "twice: first in line 3"),
        ((HEADER, CHANNEL, "400,1,48,A,,", DAY, END), 3, "400 record without a 300"),
        ((HEADER, CHANNEL, DAY.replace(",A,", ",V,"), "400,1,49,A,,", END), 4, "the intervals 1 to 49"),
        ((HEADER, CHANNEL, DAY.replace(",A,", ",V,"), "400,1,x,A,,", END), 4, "without first interval"),
        ((HEADER, CHANNEL, DAY.replace(",A,", ",V,"), "400,1,20,A,,", END), 3, "tells that of interval 21"),
    ],
)
def test_each_fault_is_named_by_its_line(lines: tuple[str, ...], line: int, words: str) -> None:
    found_line, message = only_problem(*lines)
    assert found_line == line
    assert words in message


def test_an_empty_file_says_what_it_lacks() -> None:
    assert "900" in parse_nem12("").problems[0].message


def test_blank_lines_count_but_mean_nothing() -> None:
    assert only_problem(HEADER, "", "  ", CHANNEL, "300,x", END)[0] == 5


def test_all_faults_are_collected_and_the_rest_is_read() -> None:
    bad = DAY.replace("1.5", "x")
    found = parse_nem12(
        file_of(HEADER, CHANNEL, bad, "400,1,48,A,,", "500,,,,", CHANNEL.replace("E1,,,kWh", "Q1,,,kVArh"), DAY, DAY)
    )
    assert [problem.line for problem in found.problems] == [3, 6, 8]
    assert "(and 47 more in this line)" in found.problems[0].message
    assert "its 2 records of values go with it" in found.problems[1].message
    assert found.days == ()


def test_a_bad_channel_ends_where_the_next_begins() -> None:
    found = parse_nem12(file_of(HEADER, CHANNEL.replace("kWh", "V"), DAY, CHANNEL, DAY, END))
    assert [problem.line for problem in found.problems] == [2]
    assert [day.line for day in found.days] == [5]


def test_intervals_without_data_are_none() -> None:
    varied = DAY.replace(",A,", ",V,")
    found = parse_nem12(file_of(HEADER, CHANNEL, varied, "400,1,40,A,,", "400,41,48,N,,", END))
    assert found.problems == ()
    assert found.days[0].pulses == (1_500,) * 40 + (None,) * 8
    null_day = parse_nem12(file_of(HEADER, CHANNEL, DAY.replace(",A,", ",N,"), END))
    assert set(null_day.days[0].pulses) == {None}


def test_market_time_has_no_summer_time() -> None:
    for day in ("20200115", "20200715"):
        starts_at = parse_nem12(file_of(HEADER, CHANNEL, DAY.replace("20200101", day), END)).days[0].starts_at
        assert starts_at.hour == 14
        assert starts_at.utcoffset() == timedelta(0)
