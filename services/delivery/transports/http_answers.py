"""What an HTTP status or a failed attempt means: delivered, try again, or stop and tell what to fix."""

import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import aiohttp

from services.core.retry import Answer, Verdict
from services.platform.outbound import ForbiddenAddress

MAX_DETAIL_CHARACTERS = 200

# The receiver is there but cannot take the part now; all 5xx mean the same.
RETRIED_STATUSES = frozenset({408, 425, 429})

_WHAT_TO_FIX = {
    400: "the receiver calls the request malformed: check that the URL is the right one for these exports",
    401: "the receiver wants other credentials: correct the job's settings, then resume the job",
    403: "the receiver forbids this: let the account in there or correct the job's settings, then resume the job",
    404: "nothing is at this address: correct the job's URL, then resume the job",
    405: "the receiver takes no POST at this address: correct the job's URL, then resume the job",
    409: "the receiver already has other content under this id: clear that there, then resume the job",
    410: "the receiver says that it is gone for good: give the job another URL, then resume the job",
    413: "the receiver refuses bodies of this size: let it accept at least 1 MB, then resume the job",
    415: "the receiver does not take application/json: let it, then resume the job",
}
_REDIRECT = "the receiver redirects, which is not followed: give the job the final URL, then resume the job"
_OTHER = "the receiver refuses the request and will again: correct it there or in the job's settings, then resume it"

_CERTIFICATE = "the server's certificate is not trusted: correct it there or the job's ca_pem, then resume the job"

_OUR_CERTIFICATE = (
    "the server does not accept our client certificate: give the job another one, or have its authority known there, "
    "then resume the job"
)
# What a server says that wants a client certificate, or another one. Only where TLS lets it say so before it hangs up.
_ALERTS = ("CERTIFICATE_REQUIRED", "UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED",
           "CERTIFICATE_UNKNOWN", "ACCESS_DENIED")  # fmt: skip

# The first kind that fits decides.
_FAILURES: tuple[tuple[tuple[type[Exception], ...], Verdict, str, str], ...] = (
    ((ForbiddenAddress,), Verdict.STOP, "address_forbidden", "nothing is sent there"),
    (
        (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError),
        Verdict.STOP,
        "certificate_refused",
        _CERTIFICATE,
    ),
    ((aiohttp.ClientSSLError, ssl.SSLError), Verdict.RETRY, "tls_failed", "no TLS connection came about"),
    ((aiohttp.ClientConnectorDNSError,), Verdict.RETRY, "name_not_resolved", "the host has no address"),
    ((aiohttp.ConnectionTimeoutError,), Verdict.RETRY, "connect_timeout", "the server accepted no connection in time"),
    ((TimeoutError,), Verdict.RETRY, "timeout", "the server did not answer in time"),
    ((aiohttp.ClientConnectorError,), Verdict.RETRY, "connection_refused", "the server does not accept connections"),
    ((aiohttp.InvalidURL,), Verdict.STOP, "bad_settings", "the job's URL cannot be used"),
    (
        (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, OSError),
        Verdict.RETRY,
        "connection_lost",
        "the server ended the connection",
    ),
)


def answer_of_status(status: int, headers: Mapping[str, str], said: str, now: datetime) -> Answer:
    """Return the answer for a response; `now` is needed for a Retry-After that is a date."""
    reason = f"http_{status}"
    if 200 <= status < 300:
        return Answer(Verdict.DELIVERED, reason, said)
    if status in RETRIED_STATUSES or status >= 500:
        return Answer(Verdict.RETRY, reason, said, retry_after(headers.get("Retry-After"), now))
    advice = _REDIRECT if 300 <= status < 400 else _WHAT_TO_FIX.get(status, _OTHER)
    return Answer(Verdict.STOP, reason, f"{advice}; it said: {said}" if said else advice)


def answer_of_error(error: Exception) -> Answer:
    """Return the answer for an attempt that brought no response."""
    text = printable(str(error).encode())
    if _is_our_certificate_refused(error):
        return Answer(Verdict.STOP, "client_certificate_refused", "; ".join(filter(None, (_OUR_CERTIFICATE, text))))
    for kinds, verdict, reason, sentence in _FAILURES:
        if isinstance(error, kinds):
            return Answer(verdict, reason, "; ".join(filter(None, (sentence, text))))
    return Answer(Verdict.RETRY, "bad_answer", text)


def _is_our_certificate_refused(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        reason = getattr(error, "reason", None)
        if isinstance(error, ssl.SSLError) and isinstance(reason, str) and "ALERT" in reason:
            return reason.endswith(_ALERTS)
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return False


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """Return what a Retry-After header asks for, given as seconds or as an HTTP date; None where it is no such."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return timedelta(seconds=int(value))
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # numbers of any size are possible
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(until - now, timedelta())


def printable(said: bytes) -> str:
    """Return the beginning of a receiver's words, fit for a table and a terminal: one line, no control characters."""
    text = " ".join(said.decode("utf-8", errors="replace").split())
    return "".join(character for character in text if character.isprintable())[:MAX_DETAIL_CHARACTERS]
