"""The page about the catalog export shows what is delivered, to the byte."""

import re
from pathlib import Path

import msgspec
import pytest

from services.core.catalog_content import read_catalog
from services.core.catalog_format import CSV_HEADER
from services.core.catalog_records import CatalogDevice, CatalogInput, CatalogMeter, CatalogSite

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "catalog-export.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_example_of_the_page_is_the_data_sample(ending: str) -> None:
    [example] = re.findall(rf"```{ending}\n(.*?)```", PAGE, re.DOTALL)
    sample = (REPOSITORY / "services" / "api" / "http" / "samples" / f"catalog.{ending}").read_text(encoding="utf-8")
    assert example.rstrip("\n") == sample.rstrip("\n")
    assert read_catalog(f".{ending}", sample.encode()).row_count == 8
    assert ending == "json" or example.startswith(CSV_HEADER)


@pytest.mark.parametrize(
    ("name", "struct"),
    [("sites", CatalogSite), ("devices", CatalogDevice), ("inputs", CatalogInput), ("meters", CatalogMeter)],
)
def test_the_table_of_the_page_names_every_field(name: str, struct: type[msgspec.Struct]) -> None:
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")]
    assert [field for field in re.findall(r"`([a-z_]+)`", line) if field in struct.__struct_fields__] == list(
        struct.__struct_fields__
    )
