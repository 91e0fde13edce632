"""What a person sees: sentences and tables by rich, which is imported where one is shown."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.show import Column, ReaderGoneError

_PIPE_WIDTH = 200


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command end as for every other output, instead of with rich's exit code 1."""
        raise ReaderGoneError


def console(*, stderr: bool = False) -> Console:
    """Return a console that does not squeeze its tables when it writes into a pipe or a file."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def show_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], title: str | None) -> None:
    """Write rows below the titles of their columns."""
    table = Table(
        box=None,
        title=None if title is None else Text(title),
        title_justify="left",
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold underline",
    )
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.number else "left",
            no_wrap=column.number or column.whole,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Write names and what is to be said of each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    console().print(table)
