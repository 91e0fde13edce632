"""What a request to a customer's server may carry beside the body: own headers, credentials, Standard Webhooks.

Rules and signatures only; see https://www.standardwebhooks.com for the signature.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence

SIGNATURE_HEADER = "webhook-signature"
SECRET_PREFIX = "whsec_"  # noqa: S105 - the published prefix
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
MAX_HEADERS = 20
MAX_HEADER_BYTES = 8_000

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
# Printable ASCII and what may stand between: no control character, so no second line either.
_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")
_OURS = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_OUR_PREFIXES = ("webhook-", "meterpost-", "proxy-")


def check_header(name: str, value: str) -> None:
    """Raise ValueError, which does not repeat the value, where a customer's header cannot be sent."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"the header {name!r} has a name that HTTP does not allow")
    if name.lower() in _OURS or name.lower().startswith(_OUR_PREFIXES):
        raise ValueError(f"the header {name} is set by us and cannot be given")
    if len(value) > MAX_HEADER_BYTES or not _VALUE.fullmatch(value):
        raise ValueError(
            f"the header {name} has a value that cannot be sent: printable ASCII in one line, "
            f"at most {MAX_HEADER_BYTES:,} characters"
        )


def check_token(token: str) -> None:
    """Raise ValueError, which does not repeat it, where a bearer token cannot be sent."""
    if len(token) > MAX_HEADER_BYTES or not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token must be printable ASCII without blanks")


def check_basic(username: str, password: str) -> None:
    """Raise ValueError, which does not repeat them, where a user and a password cannot be sent."""
    if not username or ":" in username:
        raise ValueError("the user name must not be empty or hold a colon")
    if any(ord(character) < 32 or ord(character) == 127 for character in username + password):
        raise ValueError("the user name and the password must not hold control characters")


def basic_credentials(username: str, password: str) -> str:
    """Return what stands behind `Basic` in the header, in UTF-8."""
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def signing_key(secret: str) -> bytes:
    """Return the key in a `whsec_…` secret. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"a signing secret is {SECRET_PREFIX} and {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes in base64")
    return key


def signature(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature header: one `v1,…` for each key, so that a receiver may know only one of them."""
    content = b"%s.%d." % (message_id.encode(), timestamp) + body
    digests = (hmac.new(key, content, hashlib.sha256).digest() for key in keys)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)
