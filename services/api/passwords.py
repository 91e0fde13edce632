"""Passwords of people, checked in threads, a few at a time: each check takes tens of milliseconds and 19 MiB."""

import asyncio

from services.platform.passwords import hash_password, is_password

_AT_ONCE = 2


class Passwords:
    """Hashes and checks passwords, two at a time."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def hash(self, password: str) -> str:
        """Return what is kept of a password."""
        async with self._turns:
            return await asyncio.to_thread(hash_password, password)

    async def is_right(self, password: str, kept: str | None) -> bool:
        """Tell whether it is the password that was hashed; with None, take as long and say no."""
        async with self._turns:
            return await asyncio.to_thread(is_password, kept, password)
