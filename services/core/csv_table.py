"""CSV with a header line, read so that every fault is named by its line. Pure: text in, values out."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

_PLAIN_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?")


class Problem(NamedTuple):
    """What is wrong in a line of a file, in a sentence for people; lines count from 1."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class TableRow(NamedTuple):
    """One line by its columns; a cell is stripped of blanks, and empty where the line leaves it out."""

    line: int
    cells: dict[str, str]


class Table:
    """The rows of a CSV text with a header line; `problems` is complete once the rows have been read."""

    def __init__(self, text: str, required: Iterable[str], optional: Iterable[str]) -> None:
        self.problems: list[Problem] = []
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        self._required = tuple(required)
        self.columns = self._read_header((*self._required, *optional))

    def rows(self) -> Iterator[TableRow]:
        """Yield the lines that have the header's shape; the others are added to `problems`."""
        if not self.columns:
            return
        while True:
            try:
                fields = next(self._reader, None)
            except csv.Error as error:
                self.problems.append(Problem(self._reader.line_num, f"this is not CSV: {error}"))
                continue
            if fields is None:
                return
            line = self._reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(self.columns):
                self.problems.append(
                    Problem(line, f"it has {len(fields)} fields, the header names {len(self.columns)} columns")
                )
                continue
            yield TableRow(line, {name: field.strip() for name, field in zip(self.columns, fields, strict=True)})

    def _read_header(self, allowed: Sequence[str]) -> tuple[str, ...]:
        try:
            header = tuple(field.strip().lower() for field in next(self._reader, []))
        except csv.Error as error:
            self.problems.append(Problem(1, f"this is not CSV: {error}"))
            return ()
        missing = [name for name in self._required if name not in header]
        unknown = [name for name in header if name not in allowed]
        if missing:
            message = f"the header line lacks {', '.join(missing)}; it may name {', '.join(allowed)}"
            self.problems.append(Problem(1, message))
        if unknown:
            message = f"unknown column {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}"
            self.problems.append(Problem(1, message))
        if len(set(header)) < len(header):
            self.problems.append(Problem(1, "a column is named twice"))
        return () if self.problems else header


def exact_number(text: str, name: str) -> Decimal:
    """Return the decimal number that `text` is. Raises ValueError naming `name` and the text."""
    if not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError(f"{name} is {text!r}, which is not a number such as 12.5")
    return Decimal(text)


def whole_number(text: str, name: str, lowest: int, highest: int) -> int:
    """Return the integer that `text` is. Raises ValueError naming `name`, the text and the range."""
    if not re.fullmatch(r"-?\d{1,1000}", text):
        raise ValueError(f"{name} is {text!r}, which is not a whole number")
    value = int(text)
    if not lowest <= value <= highest:
        raise ValueError(f"{name} is {value}, but must lie between {lowest} and {highest}")
    return value
