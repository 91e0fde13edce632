"""Passwords of accounts: kept as Argon2id hashes, compared in a time that tells nothing.

Hashing takes some 30 ms and 19 MiB on purpose: call it in a thread, and few at a time.
"""

import secrets
from functools import cache

import argon2

# The parameters that OWASP recommends first for Argon2id; a hash carries its own, so they can be raised at any time.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
MIN_LENGTH = 12
MAX_LENGTH = 1_000
# Without those that are taken for one another when somebody reads a password aloud or off a screen.
_ALPHABET = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_GROUPS, _GROUP_LENGTH = 5, 5


def hash_password(password: str) -> str:
    """Return the hash to keep. Blocks."""
    return _HASHER.hash(password)


@cache
def _nobodys_hash() -> str:
    """Return what unknown accounts are compared with, so that they take as long as known ones."""
    return hash_password(secrets.token_urlsafe())


def is_password(password_hash: str | None, password: str) -> bool:
    """Tell whether the password is the one that was hashed. Blocks as long where there is no hash at all."""
    try:
        _HASHER.verify(password_hash or _nobodys_hash(), password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    return password_hash is not None


def generated_password() -> str:
    """Return a new password that a person can type: 143 bits of chance."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS))
    return "-".join(groups)


def check_new_password(password: str) -> None:
    """Raise ValueError, with a sentence that does not repeat it, unless the password may be set."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise ValueError(f"a password has {MIN_LENGTH} to {MAX_LENGTH:,} characters; this one has {len(password):,}")
    if not password.isprintable():
        raise ValueError("a password is one line of printable characters")
    if len(set(password)) < 5:
        raise ValueError("a password needs more than a few different characters")
