"""aiohttp's way to a server, led through the judgement of addresses."""

import socket
import ssl
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from services.platform.errors import MeterpostError
from services.platform.outbound import NotResolved, Outbound


def checked_connector(
    outbound: Outbound, context: ssl.SSLContext, *, limit: int, keepalive_timeout: float
) -> aiohttp.TCPConnector:
    """Return a connector that connects only where `outbound` allows; the host's name stays what TLS verifies."""

    def checked_socket(info: tuple[Any, ...]) -> socket.socket:
        # The last place before the connection, which sees the address itself, however it was found.
        family, kind, protocol, _name, place = info
        try:
            outbound.check(str(place[0]))
        except MeterpostError as error:
            raise OSError(str(error)) from None
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(
        ssl=context,
        limit=limit,
        keepalive_timeout=keepalive_timeout,
        resolver=_CheckedResolver(outbound),
        socket_factory=checked_socket,
    )


class _CheckedResolver(AbstractResolver):
    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses that pass. Raises OSError as aiohttp expects it, and ForbiddenAddress."""
        try:
            targets = await self._outbound.resolve(host, port)
        except NotResolved as error:
            raise OSError(str(error)) from None
        return [
            ResolveResult(
                hostname=host,
                host=target.address,
                port=target.port,
                family=target.family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for target in targets
            if family in {socket.AF_UNSPEC, target.family}
        ]

    async def close(self) -> None:
        """Nothing is held."""
