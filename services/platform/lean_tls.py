"""Imports aiohttp without reading the certificates of the machine's authorities: that waits until one is asked for.

When imported, aiohttp makes two contexts for connections that name none, and has each read what authorities the machine
trusts. Where they lie in one file, that took a tenth of a service's start; all services name contexts of their own.
"""

import ssl
from typing import Any


def _read_when_used(context: ssl.SSLContext) -> None:
    """Stand in for `set_default_verify_paths`: do that when the context is first used. asyncio does it by this only."""

    def wrap_bio(*arguments: Any, **options: Any) -> ssl.SSLObject:
        del context.__dict__["wrap_bio"]
        context.set_default_verify_paths()
        return context.wrap_bio(*arguments, **options)

    context.__dict__["wrap_bio"] = wrap_bio


def _import_aiohttp() -> None:
    ssl.SSLContext.set_default_verify_paths = _read_when_used  # type: ignore[assignment]
    try:
        import aiohttp  # noqa: F401, PLC0415 - all of it happens here
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the class inherits the real one


_import_aiohttp()
