"""The Python structs and the JSON Schemas say the same, both ways, and every example holds."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from services.core import messages
from services.core.readings import (
    INTERVALS_MINUTES,
    MAX_INT32,
    MAX_RECORD_READINGS,
    MAX_VALUE,
)
from services.core.windows import RESOLUTIONS_MINUTES

MESSAGES = Path(__file__).parents[2] / "schemas" / "messages"
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "reading-upload.v1": messages.ReadingUpload,
    "ingest-progress.v1": messages.IngestProgress,
    "windows-due.v1": messages.WindowsDue,
    "windows-closed.v1": messages.WindowsClosed,
}
EXAMPLES = sorted((MESSAGES / "examples").glob("*.json"))


def schema_of(name: str) -> dict[str, Any]:
    return dict(json.loads((MESSAGES / f"{name}.schema.json").read_text(encoding="utf-8")))


def message_of(example: Path) -> str:
    return ".".join(example.name.split(".")[:2])


def assert_same_fields(struct: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    fields = msgspec.structs.fields(struct)
    assert {field.encode_name for field in fields} == set(schema["properties"])
    assert {field.encode_name for field in fields if field.required} == set(schema["required"])


def test_every_schema_has_a_struct_and_every_struct_a_schema() -> None:
    assert {path.name.removesuffix(".schema.json") for path in MESSAGES.glob("*.schema.json")} == set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_and_schema_have_the_same_fields(name: str) -> None:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == STRUCTS[name].__name__
    assert_same_fields(STRUCTS[name], schema)


def test_the_reading_inside_an_upload_has_the_same_fields_and_limits() -> None:
    schema = schema_of("reading-upload.v1")
    reading = schema["$defs"]["WireReading"]
    assert_same_fields(messages.WireReading, reading)
    properties = reading["properties"]
    assert tuple(properties["interval_minutes"]["enum"]) == INTERVALS_MINUTES
    assert properties["pulses"]["maximum"] == properties["register"]["maximum"] == MAX_VALUE
    assert properties["revision"]["maximum"] == properties["meter_id"]["maximum"] == MAX_INT32
    assert schema["properties"]["readings"]["maxItems"] == MAX_RECORD_READINGS


@pytest.mark.parametrize("name", ["windows-due.v1", "windows-closed.v1"])
def test_resolutions_are_those_of_the_code(name: str) -> None:
    assert tuple(schema_of(name)["properties"]["resolution_minutes"]["enum"]) == RESOLUTIONS_MINUTES


def test_every_message_has_an_example() -> None:
    assert {message_of(path) for path in EXAMPLES} == set(STRUCTS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_survive_the_struct(example: Path) -> None:
    name = message_of(example)
    validator = Draft202012Validator(schema_of(name), format_checker=FormatChecker())
    content = example.read_bytes()
    validator.validate(json.loads(content))
    decoded = msgspec.json.decode(content, type=STRUCTS[name])
    encoded = messages.encode(decoded)
    validator.validate(json.loads(encoded))
    assert msgspec.json.decode(encoded, type=STRUCTS[name]) == decoded


def test_a_newer_writers_field_is_ignored() -> None:
    newer = b'{"resolution_minutes":5,"closed_until":"2026-11-20T10:05:00Z","new":[1]}'
    assert msgspec.json.decode(newer, type=messages.WindowsClosed).resolution_minutes == 5
