"""CSV of meters: every column checked, every fault by its line."""

from decimal import Decimal

import pytest

from services.core.conversion import Utility
from services.core.meter_csv import MeterLine, parse_meter_csv

HEADER = (
    "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input,normalization_factor,calorific_value,"
    "register_modulus,cadence_minutes,serial_number,meter_id"
)


def test_every_column() -> None:
    found = parse_meter_csv(
        f"{HEADER}\n"
        "Boiler,Gas,nm3,0.01,Plant,LG-1,logger,2,0.95,10.55,1000000,15,SN-7,4101\n"
        '"Hall, east",Electric Pulse Meter,kWh,0.001,Plant,BR-1,Bridge,,,,,,,\n'
    )
    assert found.problems == ()
    assert found.meters == (
        MeterLine(
            2,
            "Boiler",
            "Gas",
            Utility.GAS,
            "Nm3",
            Decimal("0.01"),
            "Plant",
            "LG-1",
            "logger",
            2,
            Decimal("0.95"),
            Decimal("10.55"),
            1_000_000,
            15,
            "SN-7",
            4101,
        ),
        MeterLine(
            3,
            "Hall, east",
            "Electric Pulse Meter",
            Utility.ELECTRICITY,
            "kWh",
            Decimal("0.001"),
            "Plant",
            "BR-1",
            "bridge",
            None,
        ),
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (",Water,m3,1,S,L,logger,1", "name is empty"),
        ("A,,m3,1,S,L,logger,1", "meter_type is empty"),
        ("A,Steam,m3,1,S,L,logger,1", "unknown meter type 'Steam'"),
        ("A,Water,kWh,1,S,L,logger,1", "a water meter cannot measure in 'kWh'"),
        ("A,Water,m3,0,S,L,logger,1", "units_per_pulse is 0, but must be above 0"),
        ("A,Water,m3,,S,L,logger,1", "units_per_pulse is ''"),
        ("A,Water,m3,1/2,S,L,logger,1", "units_per_pulse is '1/2'"),
        ("A,Water,m3,1,,L,logger,1", "site is empty"),
        ("A,Water,m3,1,S,,logger,1", "device_id is empty"),
        ("A,Water,m3,1,S,L,modem,1", "device_kind is 'modem'; allowed: logger, bridge"),
        ("A,Water,m3,1,S,L,logger,", "a logger's meter needs the input"),
        ("A,Water,m3,1,S,L,bridge,1", "input must be empty"),
        ("A,Water,m3,1,S,L,logger,-1", "input is -1, but must lie between 0 and 32767"),
        (f"{'A' * 201},Water,m3,1,S,L,logger,1", "name has 201 characters, 200 are allowed"),
        ("A,Water,m3,1,S,L,logger", "it has 7 fields, the header names 8 columns"),
        ("B,Water,m3,1,S,L,logger,1", "the name 'B' is already in line 2"),
        ("A,Water,m3,1,S,K,logger,7", "input 7 of device K is already in line 2"),
        ("A,Water,m3,1,S,K,bridge,", "device K is a bridge here and a logger in line 2"),
    ],
)
def test_each_fault_is_named_by_its_line(line: str, words: str) -> None:
    header = ",".join(HEADER.split(",")[:8])
    found = parse_meter_csv(f"{header}\nB,Water,m3,1,S,K,logger,7\n{line}\n")
    assert [problem.line for problem in found.problems] == [3]
    assert words in found.problems[0].message
    assert [meter.name for meter in found.meters] == ["B"]


@pytest.mark.parametrize(
    ("optional", "words"),
    [
        ("0.9,,,,,", "belong to gas"),
        (",10,,,,", "belong to gas"),
        (",,1,,,", "register_modulus is 1"),
        (",,99999999999999999999,,,", "register_modulus is 99999999999999999999, but must lie between"),
        (",,,7,,", "cadence_minutes is 7; allowed: 1, 5, 15, 30, 60"),
        (",,,,,0", "meter_id is 0"),
    ],
)
def test_optional_columns_are_checked_too(optional: str, words: str) -> None:
    found = parse_meter_csv(f"{HEADER}\nA,Water,m3,1,S,L,logger,1,{optional}\n")
    assert words in found.problems[0].message


def test_one_line_tells_all_its_faults() -> None:
    header = ",".join(HEADER.split(",")[:8])
    found = parse_meter_csv(f"{header}\n,Steam,m3,x,S,L,logger,1\n")
    assert [problem.line for problem in found.problems] == [2, 2, 2]
