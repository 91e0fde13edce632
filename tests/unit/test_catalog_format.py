"""Catalogs: their bytes, how they are cut, and that whatever is wrong with a received part is told."""

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.catalog_content import CatalogContent, read_catalog
from services.core.catalog_format import (
    CSV_HEADER,
    CatalogCutter,
    CatalogFormat,
    CsvCatalog,
    CutCatalog,
    JsonCatalog,
    catalog_format,
)
from services.core.catalog_records import (
    BEGINNING,
    Catalog,
    CatalogKey,
    CatalogRecord,
    input_key,
    parse_key,
)
from services.core.part_names import PartName, read_part_name
from services.core.received_content import out_of_order, outside_window, read_part

AT = datetime(2026, 11, 21, tzinfo=UTC)
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLES = Path(__file__).parents[2] / "services" / "api" / "http" / "samples"


def site(number: int, name: str = "North depot", zone: str = "Europe/Berlin") -> CatalogRecord:
    return CatalogRecord(1, number, "", name, number, name, zone, *[None] * 13)


def device(name: str, kind: str = "logger") -> CatalogRecord:
    return CatalogRecord(2, 0, name, None, None, None, None, name, kind, *[None] * 11)


def attached(name: str, which: int | None, meter: int) -> CatalogRecord:
    number, kind = input_key(name, which, meter).number, "bridge" if which is None else "logger"
    record = device(name, kind)
    return record._replace(kind=3, number=number, input=which, meter_id=meter, valid_from=SINCE)


def meter(number: int, name: str, kind: str, unit: str, *factors: str | None, at: CatalogRecord) -> CatalogRecord:
    calorific = factors[2] if len(factors) > 2 else None
    return CatalogRecord(
        *(4, number, "", name, at.site_id, at.name, at.time_zone, None, None, None, number, kind, unit),
        *(factors[0], factors[1], calorific, None, 1, f"MP{number:07}", SINCE),
    )


NORTH, MILL = site(501)._replace(valid_from=SINCE), site(502, "Harbour mill", "Europe/London")
SAMPLE = [
    NORTH,
    MILL,
    device("BR-000007", "bridge"),
    device("LG-000123"),
    attached("BR-000007", None, 4102),
    attached("LG-000123", 1, 4101),
    meter(4101, "Hall feeder 3", "Electricity", "kWh", "0.001", "1", at=NORTH),
    meter(4102, "Boiler house", "Gas", "m3", "0.01", "0.9627", "10.35", at=MILL),
]


def whole(form: CatalogFormat, records: Sequence[CatalogRecord]) -> bytes:
    return form.assemble((record.kind, form.row(record)) for record in records)


def cut(form: CatalogFormat, portions: Sequence[Sequence[CatalogRecord]]) -> list[CutCatalog]:
    cutter = CatalogCutter(form)
    return [part for portion in portions for part in cutter.add(portion)] + list(cutter.finish())


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_data_sample_is_what_is_delivered(ending: str) -> None:
    form = JsonCatalog(AT) if ending == "json" else CsvCatalog(AT, "\n", defuse=True)
    assert whole(form, SAMPLE) == (SAMPLES / f"catalog.{ending}").read_bytes()


def test_json_is_what_the_struct_says() -> None:
    body = whole(JsonCatalog(AT), SAMPLE)
    assert msgspec.json.encode(msgspec.json.decode(body, type=Catalog)) == body
    assert json.loads(whole(JsonCatalog(AT), SAMPLE[:1])) == {
        "format_version": 1,
        "catalog_time": "2026-11-21T00:00:00Z",
        "sites": [
            {"id": 501, "name": "North depot", "time_zone": "Europe/Berlin", "valid_from": "2026-01-01T00:00:00Z"}
        ],
        "devices": [],
        "inputs": [],
        "meters": [],
    }


def test_no_text_in_csv_is_a_formula_and_none_breaks_a_line() -> None:
    evil = [
        site(1, "=HYPERLINK(1)"),
        device("@SUM(1)"),
        attached("@SUM(1)", 1, 2),
        meter(2, "+1", '-"a",\r\nb', "kWh", "1", "1", at=site(1, "=x")),
    ]
    body = whole(CsvCatalog(AT, "\r\n", defuse=True), evil)
    rows = list(csv.DictReader(io.StringIO(body.decode(), newline="")))
    assert [row["name"] for row in rows] == ["'=HYPERLINK(1)", "", "", "'+1"]
    assert [row["id"] for row in rows] == ["1", "'@SUM(1)", "'@SUM(1)/1", "2"]
    assert (rows[2]["device_id"], rows[3]["site_name"], rows[3]["meter_type"]) == ("'@SUM(1)", "'=x", '\'-"a",\r\nb')
    assert read_catalog(".csv", body).row_count == 4
    plain = whole(CsvCatalog(AT, "\n", defuse=False), evil)
    assert b",=HYPERLINK(1)," in plain
    assert read_catalog(".csv", plain).row_count == 4


def test_the_format_follows_from_the_job() -> None:
    assert catalog_format("https", {}, AT).ending == ".json"
    crlf = catalog_format("sftp", {"line_end": "crlf", "defuse_formulas": False}, AT)
    assert crlf.assemble([]) == CSV_HEADER.encode() + b"\r\n"
    assert crlf.row(site(1, "=a")).endswith(b"\r\n")
    assert b"'" not in crlf.row(site(1, "=a"))
    with pytest.raises(ValueError, match="line_end"):
        catalog_format("ftps", {"line_end": "cr"}, AT)


@given(counts=st.lists(st.integers(0, 3_000), max_size=4), is_json=st.booleans())
def test_parts_do_not_depend_on_how_records_were_read(counts: list[int], is_json: bool) -> None:
    records = [site(number, "N" * 30) for number in range(1, sum(counts) + 1)]
    form = JsonCatalog(AT) if is_json else CsvCatalog(AT, "\n", defuse=True)
    portions, place = [], 0
    for count in counts:
        portions.append(records[place : place + count])
        place += count
    parts = cut(form, portions)
    assert parts == cut(form, [records])
    assert sum(part.row_count for part in parts) == len(records)
    assert all(part.row_count == form.max_rows for part in parts[:-1])


def test_a_json_part_ends_before_it_is_too_large_and_a_larger_record_is_not_lost() -> None:
    records = [site(1, "a" * 400_000), site(2, "b" * 400_000), site(3, "c" * 400_000), site(4, "d" * 1_200_000)]
    parts = cut(JsonCatalog(AT), [records])
    assert [(str(part.first), part.row_count) for part in parts] == [("1:1:", 2), ("1:3:", 1), ("1:4:", 1)]
    assert [len(part.body) <= 1_000_000 for part in parts] == [True, True, False]
    assert cut(JsonCatalog(AT), [[]]) == []


def test_keys_are_told_as_text_and_compare_as_the_database_sorts() -> None:
    keys = [BEGINNING, *(record.key for record in SAMPLE), CatalogKey(3, "a:b", 7)]
    assert [parse_key(str(key)) for key in keys] == keys
    places = [record.key for record in SAMPLE]
    assert all(one.is_before(two) for one, two in pairwise(places))
    assert not places[0].is_before(places[0])
    assert places[0].is_before(places[0].following)
    # Code points beyond the first plane sort behind all others in UTF-8, but not in every language's order.
    assert CatalogKey(2, "\ue000", 0).is_before(CatalogKey(2, "\U00010000", 0))
    assert CatalogKey(2, "Z", 0).is_before(CatalogKey(2, "a", 0))


def named(ending: str) -> PartName:
    return read_part_name(f"7-Catalog_catalog_20261120T000000Z_20261121T000000Z_1of1.{ending}")


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_sound_part_is_of_the_time_that_its_name_says(ending: str) -> None:
    body = (SAMPLES / f"catalog.{ending}").read_bytes()
    content = read_part(named(ending), body)
    assert isinstance(content, CatalogContent)
    assert (content.row_count, str(content.first), str(content.last)) == (8, "1:501:", "4:4102:")
    assert outside_window(named(ending), content) is None
    assert "its name says" in str(outside_window(named(ending), content._replace(catalog_time="2026-11-20T00:00:00Z")))
    assert "meter 4102" in str(out_of_order(content, content))
    assert out_of_order(content._replace(last=content.first), content._replace(first=content.last)) is None


@pytest.mark.parametrize(
    ("ending", "before", "after", "said"),
    [
        ("csv", b"1,2026-11-21T00:00:00Z,site,502", b"2,2026-11-21T00:00:00Z,site,502", "format '2'"),
        ("csv", b"1,2026-11-21T00:00:00Z,site,502", b"1,2026-11-20T00:00:00Z,site,502", "several times"),
        ("csv", b",site,502,Harbour mill,502,", b",site,502,Harbour mill,500,", "is not in order"),
        ("csv", b",site,502,Harbour mill,502,", b",site,502,Harbour mill,501,", "stands twice"),
        ("csv", b",site,502,Harbour mill,502,", b",site,502,Harbour mill,x,", "whole number"),
        ("csv", b",device,LG", b",logger,LG", "there are site, device, input, meter"),
        ("csv", b"Harbour mill", b'"Harbour mill"', "rewrote"),
        ("csv", b"\n", b"\r\n", ""),
        ("csv", b"format_version", b"catalog_version", "header line"),
        ("csv", b",Harbour mill,Europe/London", b",Harbour mill", "fields"),
        ("csv", b"Harbour", b"\xff", "UTF-8"),
        ("json", b'"format_version":1', b'"format_version":2', "format '2'"),
        ("json", b'"id":502', b'"id":501', "stands twice"),
        ("json", b'"id":502', b'"id":500', "is not in order"),
        ("json", b'"devices"', b' "devices"', "rewrote"),
        ("json", b'"kind"', b'"sort"', "not the JSON of a catalog"),
        ("json", b"2026-11-21T00:00:00Z", b"2026-11-21", "catalog time"),
    ],
)
def test_what_is_wrong_with_a_part_is_told(ending: str, before: bytes, after: bytes, said: str) -> None:
    body = (SAMPLES / f"catalog.{ending}").read_bytes()
    assert before in body
    changed = body.replace(before, after)
    if not said:
        assert read_catalog(f".{ending}", changed).row_count == 8
        return
    with pytest.raises(ValueError, match=said):
        read_catalog(f".{ending}", changed)


def test_a_part_without_records_or_cut_off_is_told() -> None:
    for form in (JsonCatalog(AT), CsvCatalog(AT, "\n", defuse=True)):
        with pytest.raises(ValueError, match="no record"):
            read_catalog(form.ending, form.assemble([]))
    with pytest.raises(ValueError, match="cut off"):
        read_catalog(".csv", (SAMPLES / "catalog.csv").read_bytes()[:-1])
    many = [site(number) for number in range(1, 2_002)]
    with pytest.raises(ValueError, match="2,001 records"):
        read_catalog(".json", whole(JsonCatalog(AT), many))
