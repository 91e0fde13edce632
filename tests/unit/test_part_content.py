"""Parts as they are rendered are sound; whatever is changed in them is found."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.conversion import Utility
from services.core.csv_records import csv_format
from services.core.part_content import PartContent, RowKey, read_content
from services.core.parts import HTTPS_JSON, PartFormat
from services.core.records import MeasurementRow
from services.core.row_blocks import render_rows

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
FORMATS = {
    "json": HTTPS_JSON,
    "lf": csv_format("\n", defuse=True),
    "crlf": csv_format("\r\n", defuse=False),
}


def row(
    meter_id: int = 1,
    minutes: int = 0,
    *,
    name: str = "Main",
    utility: Utility = Utility.GAS,
    energy: str | None = "12.345",
    volume: str | None = "0.5",
    resolution: int = 15,
) -> MeasurementRow:
    return MeasurementRow(
        meter_id, "Gas", utility, name, "m3", START + timedelta(minutes=minutes), resolution, 7, "Old brewery",
        None if energy is None else Decimal(energy), None if volume is None else Decimal(volume),
    )  # fmt: skip


def body_of(part_format: PartFormat, rows: list[MeasurementRow]) -> bytes:
    return part_format.assemble(render_rows(part_format.layout, rows))


@given(
    names=st.lists(st.text(max_size=20), min_size=1, max_size=8),
    utility=st.sampled_from(Utility),
    amounts=st.lists(st.none() | st.decimals(min_value=-(10**9), max_value=10**9, places=3), min_size=8, max_size=8),
    which=st.sampled_from(sorted(FORMATS)),
)
def test_what_is_rendered_is_sound(
    names: list[str], utility: Utility, amounts: list[Decimal | None], which: str
) -> None:
    """Names may hold whatever they like: quotes, line ends, formulas, a byte order mark."""
    part_format = FORMATS[which]
    rows = [
        row(number + 1, name=name, utility=utility, energy=None if amount is None else str(amount), volume=None)
        for number, (name, amount) in enumerate(zip(names, amounts, strict=False))
    ]
    first, last = RowKey("2026-11-20T10:00:00Z", 1), RowKey("2026-11-20T10:00:00Z", len(rows))
    assert read_content(part_format.ending, body_of(part_format, rows)) == PartContent(len(rows), first, last, 15)


SOUND = [row(1), row(2, name='The "A", line'), row(1, 15), row(2, 15)]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        assert old in body
        return body.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("which", "change", "sentence"),
    [
        ("lf", lambda body: b"\xef\xbb\xbf" + body, "byte order mark"),
        ("lf", replaced(b"Main", b"M\xe4in"), "not UTF-8"),
        ("lf", replaced(b"meter_id", b"Meter_ID"), "does not begin with the header line"),
        ("lf", lambda body: body[:-1], "cut off"),
        ("lf", lambda body: body[:-20] + b"\n", "row 4 "),
        ("crlf", lambda body: body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n", 1), "the last line has no end"),
        ("lf", replaced(b",m3,", b',"m3",'), "quotes or line ends"),
        ("crlf", replaced(b"0.50\r\n", b"0.50\n"), "quotes or line ends"),
        ("lf", replaced(b"12.35", b"12.345"), "neither two decimals nor N/A"),
        ("lf", replaced(b"12.35", b"1,235"), "has 13 fields, not 12"),
        ("lf", replaced(b"12.35", b"N/A"), "one value of a pair"),
        ("lf", replaced(b"\n1,", b"\n01,"), "where a whole number belongs"),
        ("lf", replaced(b"\n1,", b"\n3,"), "row 2 .* is not in order"),
        ("lf", replaced(b"\n1,", b"\n2,"), "row 2 .* stands twice"),
        ("lf", replaced(b"T10:00:00Z", b" 10:00:00"), "not one such as"),
        ("lf", replaced(b"T10:00:00Z", b"T10:01:00Z"), "where no window of 15 minutes begins"),
        ("lf", replaced(b",15,", b",60,"), "row 2 has the resolution 15"),
        ("lf", replaced(b",15,", b",30,"), "row 1 has the resolution 30"),
        ("lf", replaced(b'""A""', b'"A""'), "row 2 cannot be read as CSV"),
        ("lf", lambda body: body[: body.index(b"\n") + 1], "there is no row in it"),
        ("json", lambda body: body + b"\n", "something rewrote it"),
        ("json", replaced(b'"METER_TYPE"', b'"METER_KIND"'), "missing required field `METER_TYPE`"),
        ("json", replaced(b'"METER_ID":1', b'"METER_ID":"1"'), "Expected `int`, got `str`"),
        ("json", replaced(b'"METER_ID":1', b'"METER_ID":-1'), "has the meter id -1"),
        ("json", replaced(b'"METER_ID"', b'"EXTRA":1,"METER_ID"'), "something rewrote it"),
        ("json", lambda _body: b'{"measurements":[]}', "there is no row in it"),
        ("json", lambda body: body[:-1], "not the JSON of an export"),
        ("json", lambda _body: b"[" * 100_000, "not the JSON of an export"),
    ],
)
def test_what_was_changed_is_found(which: str, change: Callable[[bytes], bytes], sentence: str) -> None:
    part_format = FORMATS[which]
    body = body_of(part_format, SOUND)
    assert read_content(part_format.ending, body).row_count == 4
    with pytest.raises(ValueError, match=sentence):
        read_content(part_format.ending, change(body))


def test_parts_that_are_too_large_are_found() -> None:
    rows = [row(number) for number in range(1, 10_002)]
    assert read_content(".csv", body_of(FORMATS["lf"], rows[:10_000])).row_count == 10_000
    with pytest.raises(ValueError, match="10,001 rows"):
        read_content(".csv", body_of(FORMATS["lf"], rows))
    with pytest.raises(ValueError, match="2,001 measurements"):
        read_content(".json", body_of(HTTPS_JSON, rows[:2_001]))
    huge = [row(1, name="x" * 1_000_000)]
    assert read_content(".json", body_of(HTTPS_JSON, huge)).row_count == 1
    with pytest.raises(ValueError, match="2 measurements in 1,0"):
        read_content(".json", body_of(HTTPS_JSON, [*huge, row(2)]))


def test_a_value_that_is_no_text_is_no_part() -> None:
    with pytest.raises(ValueError, match="not the JSON"):
        read_content(".json", msgspec.json.encode({"measurements": [{"METER_ID": 1}]}))
