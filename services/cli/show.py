"""How a command answers: tables for people, JSON for programs; times are UTC and end with Z in both."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from services.core.csv_table import Problem
from services.core.times import iso_seconds
from services.platform.errors import UserError

_PROBLEMS_SHOWN = 20


class ReaderGoneError(Exception):
    """Whoever reads our output (head, less) has seen enough: the command ends, and well."""


def write(text: str) -> None:
    """Write to standard output, now. Raises ReaderGoneError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def drop_output() -> None:
    """Let what is still to be written go nowhere: Python would complain once more when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers stand to the right, `whole` is never broken into lines."""

    title: str
    number: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the result of a command goes. Notes for people go to standard error, so that pipes stay clean."""

    as_json: bool

    def json(self, value: Any) -> None:
        """Write the result for programs."""
        write(json.dumps(value, default=_plain, ensure_ascii=False, indent=2) + "\n")

    def say(self, sentence: str) -> None:
        """Tell a person the result; nothing where JSON is wanted."""
        if not self.as_json:
            from services.cli.terminal import console  # noqa: PLC0415 - for programs nothing is laid out

            console().print(sentence, markup=False, soft_wrap=True)

    def note(self, sentence: str) -> None:
        """Tell a person something beside the result."""
        from services.cli.terminal import console  # noqa: PLC0415 - as above

        console(stderr=True).print(sentence, markup=False, soft_wrap=True, style="dim")

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
        """Show rows to a person."""
        from services.cli.terminal import show_table  # noqa: PLC0415 - as above

        show_table(columns, ([_cell(value) for value in row] for row in rows), title)

    def facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Show what is to be said of one thing."""
        from services.cli.terminal import show_facts  # noqa: PLC0415 - as above

        show_facts((name, _cell(value)) for name, value in facts)


def utc(instant: datetime | None) -> str:
    """Return an instant for people: seconds, and milliseconds only where there are some."""
    if instant is None:
        return "-"
    text = instant.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return text.removesuffix(".000") + "Z"


def lasted(duration: timedelta) -> str:
    """Return a duration that is not negative for people: seconds, and milliseconds only where there are some."""
    text = str(timedelta(milliseconds=duration // timedelta(milliseconds=1)))
    return text[:-3] if "." in text else text


def refuse(file: str, problems: Sequence[Problem]) -> UserError:
    """Return the error that lists what is wrong in a file, line by line, the first ones in full."""
    shown = [f"  {problem}" for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        shown.append(f"  … and {len(problems) - _PROBLEMS_SHOWN:,} more")
    count = "a line" if len(problems) == 1 else f"{len(problems):,} lines"
    head = f"{file}: {count} cannot be used, so nothing was done (--skip-bad leaves what is bad out)"
    return UserError("\n".join([head, *shown]))


def tell_left_out(answer: Answer, problems: Sequence[Problem]) -> None:
    """Say which lines --skip-bad left out."""
    if problems:
        answer.note(f"left out because of {len(problems):,} problem{'s' if len(problems) > 1 else ''}:")
        for problem in problems[:_PROBLEMS_SHOWN]:
            answer.note(f"  {problem}")
        if len(problems) > _PROBLEMS_SHOWN:
            answer.note(f"  … and {len(problems) - _PROBLEMS_SHOWN:,} more (--json lists them all)")


def problems_json(problems: Sequence[Problem]) -> list[dict[str, object]]:
    """Return problems for programs."""
    return [{"line": problem.line, "problem": problem.message} for problem in problems]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return iso_seconds(value)  # enough for people, and a column less wide
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return utc(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
