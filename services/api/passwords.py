"""Passwords as Argon2id hashes. Each check takes tens of milliseconds and 64 MB, so few run at a time, in threads."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_HASHER = PasswordHasher()
# Checked where nobody has the address, so that the time of the answer does not tell.
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$lscAwnsXKko2pX27+5B4WQ$PX/j0kbZIRGTDmZfZvcgHAFHRTfv/Ea9iP8iW102EI4"
_AT_ONCE = 2


class Passwords:
    """Hashes and checks passwords, two at a time."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def hash(self, password: str) -> str:
        """Return what is kept of a password."""
        async with self._turns:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def is_right(self, password: str, kept: str | None) -> bool:
        """Tell whether it is the password that was hashed; with None, take as long and say no."""
        async with self._turns:
            return await asyncio.to_thread(_verify, password, kept)


def _verify(password: str, kept: str | None) -> bool:
    try:
        _HASHER.verify(kept or _NOBODYS, password)
    except (VerificationError, InvalidHashError):
        return False
    return kept is not None
