"""What an error of an SFTP attempt means: try again, or stop and tell what to fix."""

import re

import asyncssh

from services.core.file_transfer import fingerprint
from services.core.retry import Answer, Verdict
from services.delivery.transports.file_answers import (
    CONNECTION_LOST,
    DISK_FULL,
    NO_FOLDER,
    NO_PERMISSION,
    answer_of_connecting,
)
from services.delivery.transports.http_answers import printable
from services.delivery.transports.sftp_sessions import HostKeyRefused
from services.platform.errors import UserError
from services.platform.ssh_algorithms import CIPHERS, KEY_EXCHANGES, MACS, SIGNATURES

LOST = (asyncssh.ConnectionLost, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, ConnectionError)
"""The connection ended; on one that was kept idle this says nothing of the server."""

LOGIN_REFUSED = Answer(
    Verdict.STOP,
    "login_refused",
    "the server does not let the account in: correct the user and the password, or install the job's public key there, "
    "then resume the job",
)

_OUTDATED = Answer(
    Verdict.STOP,
    "no_common_cipher",
    "the server offers no current way to encrypt: let its operator bring it up to date, then resume the job",
)
# What asyncssh says, and what to offer instead.
_NO_MATCH = re.compile(r"No matching (?P<kind>[A-Za-z ]+) algorithm found, sent .* and received (?P<offered>\S+)")
_WANTED = {
    "key exchange": ("key exchange", KEY_EXCHANGES),
    "encryption": ("cipher", CIPHERS),
    "MAC": ("MAC", MACS),
}
_NO_SFTP = Answer(Verdict.RETRY, "no_sftp", "the server opens no SFTP session: does it offer SFTP to the account?")
_BAD_ANSWER = Answer(Verdict.RETRY, "bad_answer", "the server does not speak SFTP as it should")
# OpenSSH says no more than "Failure" of a full disk, too.
_SERVER_FAILED = Answer(Verdict.RETRY, "server_failed", "the server could not do it, perhaps its disk is full")
_REFUSED = Answer(Verdict.RETRY, "connection_refused", "the server does not accept connections")

# The first kind that fits decides.
_ANSWERS: tuple[tuple[tuple[type[Exception], ...], Answer], ...] = (
    ((ConnectionRefusedError,), _REFUSED),
    (LOST, CONNECTION_LOST),
    ((asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath), NO_FOLDER),
    ((asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect), NO_PERMISSION),
    ((asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded), DISK_FULL),
    ((asyncssh.SFTPError,), _SERVER_FAILED),
    ((asyncssh.PermissionDenied,), LOGIN_REFUSED),
    ((asyncssh.ChannelOpenError,), _NO_SFTP),
    ((OSError,), _REFUSED),
)
_LONGEST_OFFER = 120
# Where the server's or the system's own words say more.
_WITH_WORDS = frozenset({_SERVER_FAILED, _REFUSED, _NO_SFTP})


def answer_of_error(error: Exception, *, approved: bool) -> Answer:
    """Return the answer for an attempt that failed; `approved`: the job has approved host keys at all."""
    answer = answer_of_connecting(error)
    if answer is not None:
        return answer
    if isinstance(error, HostKeyRefused):
        reason = "host_key_changed" if approved else "host_key_unknown"
        return Answer(Verdict.STOP, reason, host_key_sentence(error.shown, approved=approved))
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return _OUTDATED._replace(detail=_outdated(error.reason))
    if isinstance(error, UserError):
        return Answer(Verdict.STOP, "bad_settings", str(error))
    for kinds, found in _ANSWERS:
        if isinstance(error, kinds):
            return found._replace(detail=f"{found.detail} ({_text(error)})") if found in _WITH_WORDS else found
    return _BAD_ANSWER._replace(detail=f"{_BAD_ANSWER.detail} ({_text(error)})")


def host_key_sentence(shown: str, *, approved: bool) -> str:
    """Return what a person needs to decide about a key that is not approved."""
    kind = shown.split(maxsplit=1)[0]
    if approved:
        return (
            f"the server shows another key than those approved, {kind} {fingerprint(shown)}: ask its operator whether "
            "it was changed, and approve it only then"
        )
    return (
        f"no key of this server is approved yet; it shows {kind} {fingerprint(shown)}: compare that with what its "
        "operator says, then approve it"
    )


def _outdated(reason: str) -> str:
    """Return what the server lacks and what its operator should let it offer."""
    if "host key" in reason:  # which the server finds out
        wanted = " or ".join(SIGNATURES[-2:])
        return (
            f"the server signs with its host key in no way that we take ({printable(reason.encode())}): let its "
            f"operator allow {wanted} there, or another type of key, then resume the job"
        )
    found = _NO_MATCH.search(reason)
    if found is None or found["kind"] not in _WANTED:
        return f"{_OUTDATED.detail} ({printable(reason.encode())})"
    kind, names = _WANTED[found["kind"]]
    # OpenSSH has entries in the list that are no algorithms.
    offered = ",".join(name for name in found["offered"].split(",") if not name.startswith(("kex-strict", "ext-info")))
    if len(offered) > _LONGEST_OFFER:
        offered = offered[:_LONGEST_OFFER] + "…"
    return (
        f"the server offers no {kind} that we take, but {printable(offered.encode())}: let its operator allow "
        f"{' or '.join(names[-2:])} there, then resume the job"
    )


def _text(error: Exception) -> str:
    return printable(str(getattr(error, "reason", "") or getattr(error, "strerror", "") or error).encode())
