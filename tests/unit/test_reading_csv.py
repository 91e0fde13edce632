"""CSV of readings: both shapes, exact pulses, and every fault by its line."""

import gzip
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from services.core.reading_csv import AmountKind, parse_reading_csv, pulses_of

HOUSEHOLD = Path(__file__).parents[1] / "data" / "uk_electricity_hourly.csv.gz"
PULSE = Decimal("0.001")
HEADER = "meter,measurement_time,interval_minutes,pulses"


def test_the_household_is_read_to_the_last_pulse_once_rounded() -> None:
    found = parse_reading_csv(gzip.decompress(HOUSEHOLD.read_bytes()).decode(), meter="UK", interval_minutes=60)
    assert found.problems == ()
    assert len(found.readings) == 23_508
    assert sum(pulses_of(one.amount, PULSE, rounded=True) for one in found.readings) == 3_789_626
    assert {(one.meter, one.interval_minutes, one.kind) for one in found.readings} == {("UK", 60, AmountKind.UNITS)}
    assert found.readings[0].measured_at == datetime(2020, 4, 1, 1, tzinfo=UTC)


def test_the_household_has_amounts_that_are_no_whole_pulses() -> None:
    with pytest.raises(ValueError, match=r"0\.028999999999999998 is no whole number of pulses of 0\.001"):
        pulses_of(Decimal("0.028999999999999998"), PULSE, rounded=False)


@pytest.mark.parametrize(
    ("amount", "size", "exact", "rounded"),
    [
        ("0.029", "0.001", 29, 29),
        ("0.0285", "0.001", None, 29),
        ("0.02849999", "0.001", None, 28),
        ("0", "0.001", 0, 0),
        ("12", "5", None, 2),
        ("12.5", "5", None, 3),
        ("15.00", "5", 3, 3),
        ("1", "0.3", None, 3),
        ("0.9", "0.30", 3, 3),
        ("123456789012345.678", "0.001", 123_456_789_012_345_678, 123_456_789_012_345_678),
    ],
)
def test_amounts_become_pulses(amount: str, size: str, exact: int | None, rounded: int) -> None:
    assert pulses_of(Decimal(amount), Decimal(size), rounded=True) == rounded
    if exact is None:
        with pytest.raises(ValueError, match="no whole number"):
            pulses_of(Decimal(amount), Decimal(size), rounded=False)
    else:
        assert pulses_of(Decimal(amount), Decimal(size), rounded=False) == exact


def test_many_meters_with_a_correction() -> None:
    found = parse_reading_csv(
        "meter,measurement_time,interval_minutes,pulses,register,revision\n"
        "A,2026-11-20T10:00:00Z,5,7,,\n"
        "A,2026-11-20T10:00:00Z,5,8,,1\n"
        "17,2026-11-20T12:15:00+02:00,15,,918273,0\n"
    )
    assert found.problems == ()
    assert [(one.meter, one.kind.value, int(one.amount), one.revision) for one in found.readings] == [
        ("A", "pulses", 7, 0),
        ("A", "pulses", 8, 1),
        ("17", "register", 918273, 0),
    ]
    assert found.readings[2].measured_at == datetime(2026, 11, 20, 10, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A,2026-11-20T10:00:00,5,7", "names no time zone"),
        ("A,yesterday,5,7", "is not an ISO 8601 time"),
        ("A,2026-11-20T10:01:00Z,5,7", "is no multiple of 5 minutes"),
        ("A,2026-11-20T10:00:00Z,10,7", "interval_minutes is 10; allowed: 1, 5, 15, 30, 60"),
        ("A,2026-11-20T10:00:00Z,x,7", "interval_minutes is 'x', which is not a whole number"),
        ("A,2026-11-20T10:00:00Z,5,7.5", "pulses is 7.5, which is not a whole number"),
        ("A,2026-11-20T10:00:00Z,5,-1", "pulses is -1, which is negative"),
        ("A,2026-11-20T10:00:00Z,5,1e3", "pulses is '1e3', which is not a number"),
        ("A,2026-11-20T10:00:00Z,5,10000000000000000", "above 1000000000000000"),
        ("A,2026-11-20T10:00:00Z,5,", "no value is given"),
        (",2026-11-20T10:00:00Z,5,7", "meter is empty"),
        ("A,2026-11-20T10:00:00Z,5", "it has 3 fields, the header names 4 columns"),
        ('A,"2026-11-20T10:00:00Z"x,5,7', "this is not CSV"),
    ],
)
def test_each_fault_is_named_by_its_line_and_its_neighbours_are_read(line: str, words: str) -> None:
    found = parse_reading_csv(f"{HEADER}\nA,2026-11-20T09:00:00Z,5,1\n{line}\nA,2026-11-20T09:05:00Z,5,2\n")
    assert [problem.line for problem in found.problems] == [3]
    assert words in found.problems[0].message
    assert [int(one.amount) for one in found.readings] == [1, 2]


def test_the_same_interval_twice_needs_a_revision() -> None:
    found = parse_reading_csv(f"{HEADER}\nA,2026-11-20T09:00:00Z,5,1\nA,2026-11-20T10:00:00+01:00,5,1\n")
    assert [problem.line for problem in found.problems] == [3]
    assert "already in line 2; a correction needs a higher revision" in found.problems[0].message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("meter,interval_minutes,pulses", "lacks measurement_time"),
        ("start,value", "lacks meter, interval_minutes"),
        ("meter,measurement_time,interval_minutes,watts", "unknown column 'watts'"),
        ("meter,measurement_time,interval_minutes", "names none of pulses, register, kwh, value"),
        ("meter,meter,measurement_time,interval_minutes,pulses", "named twice"),
        ("", "lacks measurement_time"),
    ],
)
def test_a_wrong_header_says_what_is_wrong(header: str, words: str) -> None:
    found = parse_reading_csv(f"{header}\n1,2,3\n")
    assert found.readings == ()
    assert words in " ".join(problem.message for problem in found.problems)
    assert {problem.line for problem in found.problems} == {1}
