"""The bodies that we post: structs, JSON Schemas and examples say the same."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from services.core import catalog_content, catalog_records, manifest, part_content
from services.delivery.notices import Notice

HTTP = Path(__file__).parents[2] / "schemas" / "http"
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "catalog.v1": catalog_records.Catalog,
    "manifest.v1": manifest.Manifest,
    "measurements.v1": part_content.Measurements,
    "job-state.v1": Notice,
}
MODULES = (part_content, manifest, catalog_records)
SAMPLES = HTTP.parents[1] / "services" / "api" / "http" / "samples"
EXAMPLES = sorted((HTTP / "examples").glob("*.json"))


def schema_of(name: str) -> dict[str, Any]:
    return dict(json.loads((HTTP / f"{name}.schema.json").read_text(encoding="utf-8")))


def assert_same_fields(struct: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    fields = msgspec.structs.fields(struct)
    assert {field.encode_name for field in fields} == set(schema["properties"])
    # A field that may be left out comes last in the struct; the schema has it where it belongs.
    assert [field.encode_name for field in fields if field.default is not msgspec.UNSET] == schema["required"]


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_and_schema_have_the_same_fields(name: str) -> None:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == STRUCTS[name].__name__
    assert_same_fields(STRUCTS[name], schema)
    for part, definition in schema.get("$defs", {}).items():
        if definition.get("type") == "object":
            struct = next(getattr(module, part) for module in MODULES if hasattr(module, part))
            assert_same_fields(struct, definition)


def test_every_body_has_an_example() -> None:
    assert {".".join(path.name.split(".")[:2]) for path in EXAMPLES} == set(STRUCTS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_survive_the_struct(example: Path) -> None:
    name = ".".join(example.name.split(".")[:2])
    validator = Draft202012Validator(schema_of(name), format_checker=FormatChecker())
    content = example.read_bytes()
    validator.validate(json.loads(content))
    decoded = msgspec.json.decode(content, type=STRUCTS[name])
    assert json.loads(msgspec.json.encode(decoded)) == json.loads(content)


def test_the_kit_takes_the_example_of_measurements() -> None:
    body = (HTTP / "examples" / "measurements.v1.three.json").read_bytes()
    assert part_content.read_content(".json", body).row_count == 3


def test_the_kit_takes_the_example_of_a_catalog_which_is_the_data_sample() -> None:
    body = (HTTP / "examples" / "catalog.v1.sample.json").read_bytes()
    assert catalog_content.read_catalog(".json", body).row_count == 8
    assert body == (SAMPLES / "catalog.json").read_bytes()
