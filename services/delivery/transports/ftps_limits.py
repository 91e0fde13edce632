"""How much of what an FTP server says is taken in: no server may cost this process its memory."""

from collections.abc import Callable
from typing import TextIO

from services.platform.errors import MeterpostError

LONGEST_LINE = 8_192
"""Characters of a line of a list; ftplib has the same limit for replies."""
REPLY_LINES = 200
REPLY_CHARACTERS = 64 * 1024
LIST_NAMES = 100_000
LIST_CHARACTERS = 16 * 1024 * 1024


class ReplyTooLong(MeterpostError):  # noqa: N818 - a state of the destination, reads as one
    """The server says more than servers have to say; its session is of no use any more."""


def read_reply(next_line: Callable[[], str]) -> str:
    """Return a reply, of one line or of several (RFC 959, 4.2). Raises ReplyTooLong and what `next_line` raises."""
    lines = [next_line()]
    if lines[0][3:4] != "-":
        return lines[0]
    code, characters = lines[0][:3], len(lines[0])
    while lines[-1][:3] != code or lines[-1][3:4] == "-":
        line = next_line()
        characters += len(line)
        if len(lines) == REPLY_LINES or characters > REPLY_CHARACTERS:
            raise ReplyTooLong(f"its reply {code} has more than {REPLY_LINES} lines or {REPLY_CHARACTERS:,} characters")
        lines.append(line)
    return "\n".join(lines)


def read_list(stream: TextIO, take: Callable[[str], object]) -> bool:
    """Hand each line of a list on as it arrives; tell whether this was all, or the list goes on past our limits."""
    characters = 0
    for _ in range(LIST_NAMES):
        line = stream.readline(LONGEST_LINE + 1)
        if not line:
            return True
        characters += len(line)
        if len(line) > LONGEST_LINE or characters > LIST_CHARACTERS:
            return False
        take(line.rstrip("\r\n"))
    return False
