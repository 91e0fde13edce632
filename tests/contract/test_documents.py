"""Documents can be read as they are, in an editor and in a diff: no line of prose is longer than a line of code."""

from collections.abc import Iterator
from pathlib import Path

import pytest

DOCUMENTS = Path(__file__).parents[2] / "docs"
LONGEST = 120


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that can be wrapped: neither of a table nor of an example."""
    is_example = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_example = not is_example
        elif not is_example and not line.startswith("|"):
            yield number, line


@pytest.mark.parametrize("document", sorted(DOCUMENTS.glob("*.md")), ids=lambda path: path.name)
def test_no_line_of_prose_is_too_long(document: Path) -> None:
    lines = prose(document.read_text(encoding="utf-8"))
    assert [number for number, line in lines if len(line) > LONGEST] == []
