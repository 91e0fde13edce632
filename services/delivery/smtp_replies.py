"""smtplib with replies that have an end: its own reads one of any length into memory."""

import smtplib
from typing import Any

REPLY_LINES = 200
_LONGEST_LINE = 8_192


class _BoundedLines:
    """The lines of a server, so many at most until `begin` is called again."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = 0

    def begin(self) -> None:
        """Begin a reply."""
        self._left = REPLY_LINES

    def readline(self, limit: int) -> bytes:
        """Return a line. Raises OSError, also where a reply has too many, upon which smtplib closes the connection."""
        self._left -= 1
        if self._left < 0:
            raise OSError(f"a reply has more than {REPLY_LINES} lines: is METERPOST_SMTP_PORT a mail server's?")
        return bytes(self._file.readline(min(limit, _LONGEST_LINE + 1)))

    def close(self) -> None:
        """Close what they are read from."""
        self._file.close()


class BoundedSmtp(smtplib.SMTP):
    """A connection whose replies have an end."""

    def getreply(self) -> tuple[int, bytes]:
        """Read a reply. Raises as smtplib's own, and SMTPServerDisconnected where it is too long."""
        sock: Any = self.sock
        if not isinstance(self.file, _BoundedLines):
            self.file = _BoundedLines(self.file or sock.makefile("rb"))
        self.file.begin()
        return super().getreply()
