"""What an error of an FTPS attempt means: try again, or stop and tell what to fix."""

import ftplib
import ssl

from services.core.retry import Answer, Verdict
from services.delivery.transports.checking import trust_problem
from services.delivery.transports.file_answers import (
    CONNECTION_LOST,
    DISK_FULL,
    NO_PERMISSION,
    TIMEOUT,
    answer_of_connecting,
)
from services.delivery.transports.ftps_limits import ReplyTooLong
from services.delivery.transports.http_answers import printable
from services.platform.errors import UserError

LOGIN_REFUSED = Answer(
    Verdict.STOP,
    "login_refused",
    "the server does not let the account in: correct the user and the password, then resume the job",
)
RENAME_REFUSED = Answer(
    Verdict.STOP,
    "rename_refused",
    "the server lets the account write but not rename: let it rename in the job's folder, then resume the job",
)
_DATA_REFUSED = Answer(
    Verdict.STOP,
    "data_connection_refused",
    "the server refuses protected data connections: have its operator look at its TLS settings, then resume the job",
)
_REFUSED = Answer(
    Verdict.STOP, "server_refused", "the server refuses the command: look at what it says, then resume the job"
)
_BUSY = Answer(Verdict.RETRY, "server_busy", "the server cannot do it now")
_BAD_ANSWER = Answer(Verdict.RETRY, "bad_answer", "the server does not speak FTP as it should")
_TOO_LONG = Answer(
    Verdict.RETRY,
    "answer_too_long",
    "the server's answer has no end, or is far longer than answers are: look whether this port is an FTP server's",
)
_NO_TLS = Answer(Verdict.RETRY, "tls_failed", "no TLS connection came about")
_CONNECTION_REFUSED = Answer(Verdict.RETRY, "connection_refused", "the server does not accept connections")

# By the code that the server's reply begins with (RFC 959, 2228, 4217).
_CODES = {
    "430": LOGIN_REFUSED,
    "452": DISK_FULL,
    "522": _DATA_REFUSED,
    "530": LOGIN_REFUSED,
    "532": NO_PERMISSION,
    "534": _DATA_REFUSED,
    "536": _DATA_REFUSED,
    "550": NO_PERMISSION,
    "552": DISK_FULL,
    "553": NO_PERMISSION,
}

STALE = (EOFError, ConnectionError, ssl.SSLError, ftplib.Error)
"""What a session that was kept may fail with where a new one would not: the server ended it, or no longer takes its
data connections. A new one says what is the matter."""


def answer_of_error(error: Exception) -> Answer:
    """Return the answer for an attempt that failed."""
    answer = answer_of_connecting(error)
    if answer is None and isinstance(error, ftplib.Error):
        text = printable(str(error).encode())
        known = _CODES.get(text[:3])
        if known is None:
            known = {"4": _BUSY, "5": _REFUSED}.get(text[:1], _BAD_ANSWER)
        answer = known._replace(detail=f"{known.detail}; it said: {text}")
    if isinstance(error, ReplyTooLong):
        answer = _TOO_LONG._replace(detail=f"{_TOO_LONG.detail} ({error})")
    return answer or _of_connection(error)


def _of_connection(error: Exception) -> Answer:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Answer(Verdict.STOP, "certificate_refused", trust_problem(error))
    if isinstance(error, UserError):
        return Answer(Verdict.STOP, "bad_settings", str(error))
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if isinstance(error, EOFError | ConnectionError) and not isinstance(error, ConnectionRefusedError):
        return CONNECTION_LOST
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return CONNECTION_LOST
    known = _NO_TLS if isinstance(error, ssl.SSLError) else _CONNECTION_REFUSED
    if not isinstance(error, OSError):
        known = _BAD_ANSWER
    text = printable(str(getattr(error, "strerror", "") or error).encode())
    return known._replace(detail=f"{known.detail} ({text})")
