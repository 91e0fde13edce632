"""Secrets at rest: AES-256-GCM under a ring of keys, each text bound to the place where it belongs.

A sealed text is `v1.KEY-ID.BASE64`: base64url of a 12-byte nonce and the ciphertext. The place (organization, job,
name) is authenticated, not stored: a text that was copied to another place does not open there.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from services.platform.errors import OperatorNeeded, UserError
from services.platform.signed_links import LinkSigner

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_SECRET_BYTES = 64 * 1024
_VERSION = "v1"
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_FORM = (
    "one key a line or separated by commas, ID:KEY, the key 32 bytes in base64; `meterpost secrets new-key` makes one"
)


class SecretUnreadableError(UserError):
    """A sealed text does not open: it was changed, or belongs elsewhere. It must be set anew."""


class KeyMissing(OperatorNeeded):
    """No key of this id is known here: nobody's settings are wrong but ours."""


class Vault:
    """Seals and opens texts. Knows the newest key by its being the first of the ring."""

    def __init__(self, keys: Mapping[str, bytes], file: Path | None = None) -> None:
        self._keys = dict(keys)
        self._file = file

    @property
    def key_ids(self) -> Sequence[str]:
        """The ids of the keys, the one that seals first."""
        return list(self._keys)

    def link_signer(self, purpose: str) -> LinkSigner:
        """Return what signs links for a purpose, by keys derived from these."""
        return LinkSigner(self._keys, purpose)

    def seal(self, text: str, place: Sequence[str | int]) -> str:
        """Return the text sealed for its place. Raises UserError where there is no key or the text is too long."""
        content = text.encode()
        if not self._keys:
            raise UserError(
                "a secret cannot be kept, because there is no key to seal it with: set METERPOST_SECRET_KEYS_FILE or "
                "METERPOST_SECRET_KEYS (`meterpost secrets new-key` makes a key)"
            )
        if len(content) > MAX_SECRET_BYTES:
            raise UserError(f"a secret has {len(content):,} bytes, {MAX_SECRET_BYTES:,} are allowed")
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - most commands seal nothing

        key_id, key = next(iter(self._keys.items()))
        nonce = os.urandom(NONCE_BYTES)
        boxed = nonce + AESGCM(key).encrypt(nonce, content, _associated(key_id, place))
        return f"{_VERSION}.{key_id}.{base64.urlsafe_b64encode(boxed).decode()}"

    def open(self, sealed: str, place: Sequence[str | int]) -> str:
        """Return the text. Raises KeyMissing where its key is not known here, else SecretUnreadableError."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - most commands open nothing
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - as above

        key_id = sealed_with(sealed)
        key = self._key(key_id)
        try:
            boxed = base64.b64decode(sealed.rpartition(".")[2], altchars=b"-_", validate=True)
            nonce, content = boxed[:NONCE_BYTES], boxed[NONCE_BYTES:]
            return AESGCM(key).decrypt(nonce, content, _associated(key_id, place)).decode()
        except (InvalidTag, ValueError):
            raise SecretUnreadableError(
                f"the secret {place[-1]} was changed or belongs elsewhere; set it anew"
            ) from None

    def is_newest(self, sealed: str) -> bool:
        """Tell whether the text is sealed with the key that seals now."""
        return bool(self._keys) and sealed_with(sealed) == next(iter(self._keys))

    def _key(self, key_id: str) -> bytes:
        if key_id not in self._keys and self._file is not None:
            # A key may have been added to the file since the start.
            self._keys = read_keys(self._file)
        key = self._keys.get(key_id)
        if key is None:
            raise KeyMissing(
                f"a secret is sealed with the key {key_id}, which is not among METERPOST_SECRET_KEYS or in "
                "METERPOST_SECRET_KEYS_FILE here: add it"
            )
        return key


def sealed_with(sealed: str) -> str:
    """Return the id of the key that a text is sealed with. Raises SecretUnreadableError."""
    version, _dot, rest = sealed.partition(".")
    key_id, dot, _boxed = rest.partition(".")
    if version != _VERSION or not dot or not _KEY_ID.fullmatch(key_id):
        raise SecretUnreadableError("a sealed text has an unknown form; set the secret anew")
    return key_id


def parse_keys(text: str) -> dict[str, bytes]:
    """Return the keys by id in their order. Raises UserError, which repeats no key."""
    keys: dict[str, bytes] = {}
    for number, entry in enumerate(filter(None, (entry.strip() for entry in re.split(r"[,\n]", text))), start=1):
        if entry.startswith("#"):
            continue
        key_id, _colon, encoded = entry.partition(":")
        try:
            key = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            key = b""
        if not _KEY_ID.fullmatch(key_id) or len(key) != KEY_BYTES or key_id in keys:
            raise UserError(f"the key number {number} cannot be used (or its id is there twice): {_FORM}")
        keys[key_id] = key
    if not keys:
        raise UserError(f"there is no key: {_FORM}")
    return keys


def read_keys(file: Path) -> dict[str, bytes]:
    """Return the keys in a file. Blocks. Raises UserError."""
    try:
        return parse_keys(file.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"the keys for secrets in {file} cannot be read: {reason}") from None


def new_key(key_id: str) -> str:
    """Return a line with a new key of this id."""
    if not _KEY_ID.fullmatch(key_id):
        raise UserError(f"a key cannot be called {key_id!r}: letters, digits, _ and -, at most 32")
    return f"{key_id}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def ensure_key_file(file: Path, key_id: str) -> None:
    """Make a file with a key, for its owner only, unless it is there. Blocks."""
    put_key_first(file, key_id) if not file.exists() else read_keys(file)


def put_key_first(file: Path, key_id: str) -> None:
    """Put a new key before those in the file, which may not exist yet; only its owner may read it. Blocks."""
    before = file.read_text(encoding="ascii") if file.exists() else ""
    text = f"{new_key(key_id)}\n{before}"
    parse_keys(text)
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return the text with every secret in it blotted out, one that is cut off by its end included."""
    for secret in sorted({secret for secret in secrets if secret}, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
        longest = min(len(secret) - 1, len(text))
        cut = next((n for n in range(longest, _CUT_SHOWN, -1) if text.endswith(secret[:n])), 0)
        text = text[: len(text) - cut] + "[secret]" if cut else text
    return text


# So many first characters of a secret at the end of a text may as well be chance.
_CUT_SHOWN = 3


def _associated(key_id: str, place: Sequence[str | int]) -> bytes:
    """Join the place so that no two places look alike: each part with its length before it."""
    return b"".join(f"{len(part.encode())}:{part};".encode() for part in map(str, (_VERSION, key_id, *place)))
