"""The record as CSV, byte for byte, and back again through the csv module."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.conversion import Utility
from services.core.csv_records import CSV_HEADER, LINE_ENDS, csv_format
from services.core.parts import HTTPS_JSON, cut_parts
from services.core.records import MeasurementRow
from tests.support.row_oracle import FORMULA_BEGINNINGS, block_of, csv_line, json_line, rendered

AT = datetime(2026, 5, 4, 10, 15, tzinfo=UTC)


def row(
    utility: Utility = Utility.ELECTRICITY,
    *,
    name: str = "Hall feeder 3",
    site: str = "North depot",
    energy_wh: str | None = None,
    volume: str | None = None,
    meter_id: int = 4101,
    meter_type: str = "Electricity",
    unit: str = "kWh",
    at: datetime = AT,
    minutes: int = 15,
) -> MeasurementRow:
    return MeasurementRow(
        meter_id,
        meter_type,
        utility,
        name,
        unit,
        at,
        minutes,
        501,
        site,
        None if energy_wh is None else Decimal(energy_wh),
        None if volume is None else Decimal(volume),
    )


def body(rows: list[MeasurementRow], line_end: str = "\n", *, defuse: bool = True) -> bytes:
    return rendered(csv_format(line_end, defuse=defuse), rows)


def test_a_part_byte_for_byte() -> None:
    rows = [
        row(energy_wh="12062.5"),
        row(Utility.GAS, meter_type="Gas", unit="Nm3", name="Boiler", energy_wh="11200", volume="1.005", meter_id=4102),
        row(Utility.WATER, meter_type="Water", unit="m3", name='Tap "A", cold', volume="0.25", meter_id=4103),
    ]
    assert body(rows) == (
        b"meter_id,meter_type,meter_name,meter_unit,measurement_time(UTC),resolution(minutes),site_id,site_name,"
        b"power(W),energy(Wh),flow,volume\n"
        b"4101,Electricity,Hall feeder 3,kWh,2026-05-04T10:15:00Z,15,501,North depot,48250.00,12062.50,N/A,N/A\n"
        b"4102,Gas,Boiler,Nm3,2026-05-04T10:15:00Z,15,501,North depot,44800.00,11200.00,4.02,1.01\n"
        b'4103,Water,"Tap ""A"", cold",m3,2026-05-04T10:15:00Z,15,501,North depot,N/A,N/A,1.00,0.25\n'
    )


def test_line_ends_are_the_jobs_choice_and_only_line_ends() -> None:
    rows = [row(energy_wh="1", name="two\nlines"), row(energy_wh="2")]
    for line_end in LINE_ENDS.values():
        lines = body(rows, line_end).split(line_end.encode())
        assert lines[-1] == b""
        assert lines[0].decode() == CSV_HEADER
    assert body(rows, "\r\n").count(b"\r\n") == 3
    assert b"two\nlines" in body(rows, "\r\n")


@pytest.mark.parametrize("beginning", FORMULA_BEGINNINGS)
def test_formulas_are_defused_unless_the_job_wants_them_as_they_are(beginning: str) -> None:
    text = beginning + "HYPERLINK(1)"
    rows = [row(energy_wh="1", name=text, site=text, unit=text, meter_type=text)]
    [defused] = read(body(rows))
    assert [defused[place] for place in (1, 2, 3, 7)] == ["'" + text] * 4
    [plain] = read(body(rows, defuse=False))
    assert [plain[place] for place in (1, 2, 3, 7)] == [text] * 4


def test_numbers_are_never_defused() -> None:
    assert read(body([row(energy_wh="-4.006", meter_id=-7)]))[0][0] == "-7"
    assert read(body([row(energy_wh="-4.006")]))[0][8:10] == ["-16.02", "-4.01"]


@pytest.mark.parametrize("minutes", [1, 5, 15, 60])
@pytest.mark.parametrize("utility", list(Utility))
def test_the_values_are_those_of_the_json_record(utility: Utility, minutes: int) -> None:
    for energy, volume in [("0", "0"), ("0.005", "0.015"), ("123456789012345678.125", "99999999.994999"), (None, None)]:
        one = row(utility, energy_wh=energy, volume=volume, minutes=minutes)

        expected = list(json.loads(json_line(one)).values())
        assert read(body([one]))[0] == [str(value) for value in expected]


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@given(
    names=st.lists(st.tuples(texts, texts), min_size=1, max_size=6),
    line_end=st.sampled_from(sorted(LINE_ENDS.values())),
    defuse=st.booleans(),
)
def test_any_text_comes_back_through_the_csv_module(names: list[tuple[str, str]], line_end: str, defuse: bool) -> None:
    rows = [row(energy_wh="1", name=name, site=site, meter_id=place) for place, (name, site) in enumerate(names)]
    content = body(rows, line_end, defuse=defuse)
    for (name, site), cells in zip(names, read(content), strict=True):
        assert len(cells) == 12
        for text, cell in ((name, cells[2]), (site, cells[7])):
            is_formula = defuse and text[:1] in set(FORMULA_BEGINNINGS) and text != ""
            assert cell == ("'" + text if is_formula else text)


@given(
    st.lists(st.tuples(texts, texts, texts, texts, st.integers(0, 9), st.sampled_from(list(Utility))), max_size=9),
    st.booleans(),
)
def test_rows_by_the_thousand_are_the_rows_one_by_one(
    seen: list[tuple[str, str, str, str, int, Utility]], defuse: bool
) -> None:
    rows = [
        row(utility, name=name, site=site, unit=unit, meter_type=kind, meter_id=meter, energy_wh="1", volume="2.005")
        for name, site, unit, kind, meter, utility in seen
    ]
    for part_format, lines in (
        (csv_format("\r\n", defuse=defuse), [csv_line(one, defuse=defuse) for one in rows]),
        (HTTPS_JSON, list(map(json_line, rows))),
    ):
        if rows:
            assert rendered(part_format, rows) == part_format.assemble(lines)


def test_parts_have_10_000_rows_and_a_header_each() -> None:
    part_format = csv_format("\r\n", defuse=True)
    rows = [row(energy_wh=str(number), meter_id=number) for number in range(20_001)]
    parts = list(cut_parts(part_format, block_of(part_format, rows), is_end=True))
    assert [(part.first, part.row_count) for part in parts] == [(0, 10_000), (10_000, 10_000), (20_000, 1)]
    for part in parts:
        mine = rows[part.first : part.first + part.row_count]
        assert part.body == part_format.assemble([csv_line(one, defuse=True) for one in mine])
        assert part.body.startswith(CSV_HEADER.encode() + b"\r\n")


def read(content: bytes) -> list[list[str]]:
    lines = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    assert lines[0] == CSV_HEADER.split(",")
    return lines[1:]
