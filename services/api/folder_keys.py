"""Names and public keys by which customers log in to the hosted folder."""

import re
from typing import NamedTuple

from services.core.file_transfer import fingerprint
from services.platform.errors import UserError

_KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_MIN_RSA_BYTES = 270
"""So long is the public half of an RSA key of 2048 bits."""


_USER_NAME = re.compile(r"[a-z][a-z0-9._-]{1,63}")


def check_user_name(user_name: str) -> None:
    """Raise UserError unless this can be an account's name."""
    if not _USER_NAME.fullmatch(user_name) or user_name.startswith("meterpost"):
        raise UserError(
            f"{user_name!r} cannot be an account's name: it has 2 to 64 of a-z, 0-9, dots, dashes and underscores, "
            "begins with a letter, and not with `meterpost`"
        )


class PublicKey(NamedTuple):
    """A public key that is to be authorised."""

    fingerprint: str
    line: str
    comment: str


def parse_public_key(where: str, line: str) -> PublicKey:
    """Return the key of a line as `ssh-keygen` writes it. Raises UserError that says `where` it is wrong."""
    import asyncssh  # noqa: PLC0415 - it takes a fifth of a second, and most processes never need it

    if "PRIVATE KEY" in line:
        raise UserError(
            f"{where} is a private key, which its owner gives to nobody: give the public half, the .pub file"
        )
    try:
        key = asyncssh.import_public_key(line)
    except (asyncssh.KeyImportError, ValueError):
        raise UserError(
            f"{where} is no public key such as `ssh-ed25519 AAAA… comment` (options are not supported)"
        ) from None
    words = key.export_public_key("openssh").decode("utf-8", "replace").split(maxsplit=2)
    if words[0] not in _KEY_TYPES:
        raise UserError(f"{where} is a key of type {words[0]}, which is not accepted; types: {', '.join(_KEY_TYPES)}")
    if words[0] == "ssh-rsa" and len(key.public_data) < _MIN_RSA_BYTES:
        raise UserError(f"{where} is an RSA key of less than 2048 bits: make a new one, ssh-keygen -t ed25519")
    comment = "".join(character for character in " ".join(words[2:]) if character.isprintable())[:200]
    return PublicKey(fingerprint(" ".join(words[:2])), " ".join(words[:2]), comment)
