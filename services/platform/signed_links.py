"""Links that open one thing until an instant, without a login: a token signed by HMAC-SHA256.

A token is `KEY-ID.EXPIRES.SIGNATURE` with the instant in seconds since 1970 and the signature in base64url. What it
opens is signed, not stored: a token for one thing opens no other. Keys are derived from the ring that seals secrets,
each for its purpose, so tokens go on to be good while a key is exchanged, and never reveal anything of the key.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from services.core.times import EPOCH
from services.platform.errors import UserError

_FORM = re.compile(r"([A-Za-z0-9_-]{1,32})\.(\d{1,12})\.([A-Za-z0-9_-]{43})")


class LinkError(UserError):
    """The link opens nothing. Its sentence says whether a new one helps, and nothing about why a signature is wrong."""


class LinkExpiredError(LinkError):
    """The link was good once."""


class LinkSigner:
    """Makes and checks tokens of one purpose; the first key of the ring signs, all of them check."""

    def __init__(self, keys: Mapping[str, bytes], purpose: str) -> None:
        self._keys = {
            key_id: hmac.digest(key, b"link:" + purpose.encode(), hashlib.sha256) for key_id, key in keys.items()
        }

    def sign(self, thing: Sequence[str | int], expires_at: datetime) -> str:
        """Return a token that opens `thing` before `expires_at` (cut to seconds). Raises UserError without a key."""
        if not self._keys:
            raise UserError(
                "no link can be signed, because there is no key: set METERPOST_SECRET_KEYS_FILE or "
                "METERPOST_SECRET_KEYS (`meterpost secrets new-key` makes a key)"
            )
        key_id, key = next(iter(self._keys.items()))
        seconds = str(int((expires_at - EPOCH).total_seconds()))
        signature = base64.urlsafe_b64encode(_signature(key, key_id, seconds, thing)).decode().rstrip("=")
        return f"{key_id}.{seconds}.{signature}"

    def check(self, token: str, thing: Sequence[str | int], now: datetime) -> None:
        """Return if the token opens `thing` now; raises LinkError, LinkExpiredError where it was good once."""
        found = _FORM.fullmatch(token)
        key_id, seconds, encoded = found.groups() if found else ("", "0", "")
        try:
            signature = base64.b64decode(encoded + "=", altchars=b"-_", validate=True)
        except binascii.Error:
            signature = b""
        # A key that is not known takes as long as one that is.
        key = self._keys.get(key_id, b"\0" * 32)
        is_right = hmac.compare_digest(signature, _signature(key, key_id, seconds, thing))
        if not is_right or key_id not in self._keys or found is None:
            raise LinkError("this link opens nothing: ask for a new one")
        if (now - EPOCH).total_seconds() >= int(seconds):
            raise LinkExpiredError("this link was good until a while ago: ask for a new one")


def _signature(key: bytes, key_id: str, seconds: str, thing: Sequence[str | int]) -> bytes:
    parts = (key_id, seconds, *map(str, thing))
    # Each part with its length before it, so that no two lists look alike.
    return hmac.digest(key, b"".join(f"{len(part.encode())}:{part};".encode() for part in parts), hashlib.sha256)
