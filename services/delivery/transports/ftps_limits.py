"""How much of what an FTP server says is taken in: nobody's server may cost this process its memory."""

import ftplib
from collections.abc import Callable
from typing import TextIO

LONGEST_LINE = 8_192
"""Characters of a line, of a reply as of a list."""
REPLY_LINES = 200
REPLY_CHARACTERS = 64 * 1024
LIST_NAMES = 20_000
LIST_CHARACTERS = 4 * 1024 * 1024


class TooMuch(ftplib.Error):
    """The server says more than any server has to say; the session is of no use any more."""


class Counter:
    """Counts what arrives, line by line, against a limit of lines and one of characters."""

    def __init__(self, what: str, lines: int, characters: int) -> None:
        self._what = what
        self._limits = (lines, characters)
        self._lines = 0
        self._characters = 0

    def take(self, line: str) -> None:
        """Count one line. Raises TooMuch."""
        self._lines += 1
        self._characters += len(line)
        lines, characters = self._limits
        if self._lines > lines or self._characters > characters:
            raise TooMuch(f"{self._what} is longer than {lines:,} lines or {characters:,} characters")


def read_reply(next_line: Callable[[], str]) -> str:
    """Return a reply, of one line or of several (RFC 959, 4.2). Raises TooMuch and what `next_line` raises."""
    counter = Counter("a reply", REPLY_LINES, REPLY_CHARACTERS)
    lines = [next_line()]
    counter.take(lines[0])
    if lines[0][3:4] == "-":
        code = lines[0][:3]
        while lines[-1][:3] != code or lines[-1][3:4] == "-":
            line = next_line()
            counter.take(line)
            lines.append(line)
    return "\n".join(lines)


def read_list(stream: TextIO, take: Callable[[str], object]) -> None:
    """Hand each line of a list on as it arrives. Raises TooMuch, of lines without an end, too."""
    counter = Counter("the list of the folder", LIST_NAMES, LIST_CHARACTERS)
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise TooMuch(f"a line of the list of the folder is longer than {LONGEST_LINE:,} characters")
        counter.take(line)
        take(line.rstrip("\r\n"))
